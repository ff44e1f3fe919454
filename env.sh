# Sourced by run.sh and test.sh: a Python environment with the pinned requirements.
# An environment that is active already is used; otherwise one is made in .venv.

cd "$(dirname "${BASH_SOURCE[0]}")"
die() { echo "$*" >&2; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; }

active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
if [ -n "$active" ] && ! python -c 'import os.path, sys
sys.exit(not os.path.samefile(sys.prefix, sys.argv[1]))' "$active" 2>/dev/null; then
    echo "the environment $active is named as active, but is gone or not in use: using .venv"
    unset VIRTUAL_ENV CONDA_PREFIX
    active=""
fi

ACTIVATE=""                                           # what a person needs to do, once per terminal
if [ -z "$active" ]; then
    ACTIVATE="source .venv/bin/activate && "
    # it holds the name of its folder, and a link to its Python: both may have changed
    if ! .venv/bin/python -c "" 2>/dev/null ||
            ! (. .venv/bin/activate && [ "$VIRTUAL_ENV" -ef .venv ]) 2>/dev/null; then
        if [ "$(uname -sm)" = "Darwin x86_64" ]; then
            die "PyTorch 2.9 is needed, but its last package for Intel Macs is 2.2: use Docker"
        fi
        command -v python3 >/dev/null || die "python3 is missing: install Python 3.10 or newer"
        new_enough python3 || die "Python 3.10 or newer is needed, this is $(python3 -V)"
        python3 -c 'import ensurepip, venv' 2>/dev/null ||
            die "Python's venv module is missing (on Debian and Ubuntu: apt install python3-venv)"
        echo "making the environment in .venv"
        python3 -m venv --clear .venv || die "could not make .venv"
    fi
    . .venv/bin/activate
fi
new_enough python ||
    die "Python 3.10 or newer is needed, this is $(python -V) in ${active:-.venv}: deactivate or" \
        "remove it"

# this runs only when requirements.txt has changed since it last succeeded here
stamp="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rlhf-requirements.txt"
if ! cmp -s requirements.txt "$stamp"; then
    install="python -m pip install --disable-pip-version-check"
    # uv is faster, but does not know what pip is told about mirrors and certificates
    if command -v uv >/dev/null && [ -z "$(python -m pip config list 2>/dev/null)" ]; then
        install="uv pip install --python python"
    fi
    tool="${install%% install*}"
    echo "installing requirements.txt with $tool (once; some minutes, more on a slow network)"
    $install --quiet -r requirements.txt ||
        die "$tool could not install requirements.txt; its message is above"
    cp requirements.txt "$stamp"
fi
