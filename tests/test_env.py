"""env.sh: which environment it uses, and when it makes one. Its python3 is ours, and pip a
stand-in: nothing is downloaded."""

import os
import shutil
import subprocess
import sys

import pytest

from tiny import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="for bash")


@pytest.fixture
def checkout(tmp_path):
    """A folder with env.sh, beside one with a python3 whose new environments have our pip."""
    for folder in ("first", "bin", "lib/pip"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "env.sh", tmp_path / "first")
    (tmp_path / "first/requirements.txt").write_text("torch\n")
    (tmp_path / "lib/pip/__main__.py").write_text(
        "import os, sys\nprint(os.getenv('SETTINGS', '') if 'config' in sys.argv else 'pip runs')")
    python3 = tmp_path / "bin/python3"
    python3.write_text(f'#!/bin/sh\n[ "$1 $2" = "-m venv" ] || exec {sys.executable} "$@"\n'
                       f'shift 2; exec {sys.executable} -m venv --without-pip "$@"\n')
    python3.chmod(0o755)
    return tmp_path / "first"


def env(checkout, **variables):
    """What env.sh prints, and the environment that it ends in."""
    clean = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    clean |= dict(PATH=f"{checkout.parent}/bin:/usr/bin:/bin",
                  PYTHONPATH=str(checkout.parent / "lib"))
    done = subprocess.run(
        ["bash", "-c", "set -euo pipefail; . ./env.sh; python -c 'import sys; print(sys.prefix)'"],
        cwd=checkout, env=clean | variables, capture_output=True, text=True)
    assert done.stderr.count("\n") == (done.returncode != 0), done.stderr
    return done.stdout + done.stderr


def test_an_environment_is_made_once(checkout):
    assert env(checkout) == ("making the environment in .venv\n"
                             "installing requirements.txt with python -m pip (once; some minutes, "
                             f"more on a slow network)\npip runs\n{checkout}/.venv\n")
    assert env(checkout) == f"{checkout}/.venv\n"


@pytest.mark.parametrize("settings, runs", [
    ("", "uv runs pip install --python python --quiet -r requirements.txt"),
    ("global.cert='a.crt'", "pip runs")])
def test_uv_installs_where_it_is_there_and_pip_has_no_settings_that_uv_does_not_know(
        checkout, settings, runs):
    uv = checkout.parent / "bin/uv"
    uv.write_text('#!/bin/sh\necho "uv runs $@"\n')
    uv.chmod(0o755)
    said = env(checkout, SETTINGS=settings)
    assert said.splitlines()[-2:] == [runs, f"{checkout}/.venv"]
    assert env(checkout, SETTINGS=settings) == f"{checkout}/.venv\n"


def moved(checkout):
    return checkout.rename(checkout.with_name("there"))


def without_python(checkout):
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/nowhere/python3.8")
    return checkout


@pytest.mark.parametrize("change", [moved, without_python])
def test_an_environment_that_was_moved_or_whose_python_is_gone_is_made_again(checkout, change):
    env(checkout)
    checkout = change(checkout)
    said = env(checkout)
    assert "making the environment" in said and said.endswith(f"pip runs\n{checkout}/.venv\n")


@pytest.mark.parametrize("name", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_that_was_deleted_is_not_used(checkout, name):
    said = env(checkout, **{name: "/nowhere/env"})
    assert said.startswith("the environment /nowhere/env is named as active, but is gone")
    assert said.endswith(f"{checkout}/.venv\n")


def active(checkout):
    """What is set where this checkout's environment is active."""
    return dict(VIRTUAL_ENV=f"{checkout}/.venv", PATH=f"{checkout}/.venv/bin:/usr/bin:/bin")


def test_an_active_environment_is_used(checkout):
    env(checkout)
    second = shutil.copytree(checkout, checkout.with_name("second"),
                             ignore=shutil.ignore_patterns(".venv"))
    assert env(second, **active(checkout)) == f"{checkout}/.venv\n"


def test_an_active_environment_with_an_old_python_gets_one_line(checkout):
    env(checkout)
    (checkout.parent / "lib/sitecustomize.py").write_text(
        "import sys; sys.version_info = (3, 9, 1, 'final', 0)")
    said = env(checkout, **active(checkout))
    assert "Python 3.10 or newer is needed" in said and f"in {checkout}/.venv: deactivate" in said


def test_the_commands_that_run_sh_prints_are_quoted_where_they_must_be():
    text = (ROOT / "run.sh").read_text("utf-8")
    step = text[text.index("step()"):].partition("\n}\n")[0]
    done = subprocess.run(["bash", "-c", f"{step}\n}}\nstep Title echo 'a b' '$(c)' --d=e,f/g.pt"],
                          capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [r"$ echo a\ b \$\(c\) --d=e,f/g.pt",
                                             "a b $(c) --d=e,f/g.pt"]
