# Sourced by run.sh and test.sh: a Python environment with the pinned requirements.
# An environment that is active already is used; otherwise one is made in .venv.

cd "$(dirname "${BASH_SOURCE[0]}")"
die() { echo "$1" >&2; exit 1; }

ACTIVATE=""                                           # what a person needs to do, once per terminal
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    ACTIVATE="source .venv/bin/activate && "
    if [ ! -x .venv/bin/python ]; then
        if [ "$(uname -sm)" = "Darwin x86_64" ]; then
            die "PyTorch 2.9 is needed, but its last package for Intel Macs is 2.2: use Docker"
        fi
        command -v python3 >/dev/null || die "python3 is missing: install Python 3.10 or newer"
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            die "Python 3.10 or newer is needed, this is $(python3 -V)"
        python3 -c 'import ensurepip, venv' 2>/dev/null ||
            die "Python's venv module is missing (on Debian and Ubuntu: apt install python3-venv)"
        echo "making the environment in .venv"
        python3 -m venv .venv || die "could not make .venv"
    fi
    . .venv/bin/activate
fi

# pip runs only when requirements.txt has changed since it last succeeded here
stamp="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}/rlhf-requirements.txt"
if ! cmp -s requirements.txt "$stamp"; then
    echo "installing requirements.txt (once; some minutes, more on a slow network)"
    python -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
        die "pip could not install requirements.txt; its message is above"
    cp requirements.txt "$stamp"
fi
