#!/usr/bin/env bash
# The tests, in the environment of run.sh. Arguments go to pytest: bash test.sh -k tokenizer, or
# bash test.sh -m slow for those that take minutes.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python -m pytest -q "$@"
