#!/usr/bin/env bash
# The tests, in the environment of run.sh, two files at a time. Arguments go to pytest: bash test.sh
# -k tokenizer, -m slow for those that take minutes, -n 0 for one file at a time (for a debugger).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
