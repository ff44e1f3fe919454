"""docs/notebook.ipynb: a valid file without outputs, whose cells run from the first to the last."""

import json
import re
import shutil
import sys

import pytest

import tiny
from tiny import ROOT

NOTEBOOK = ROOT / "docs/notebook.ipynb"
REASON = " ".join(f"--{name}={value}" for name, value in tiny.SHORT["-m lessons.reason"].items())

# What stands in for the chain, for a download, and for the packages; the rest runs, but shortly.
PYTHON = f"""#!/bin/sh
case "$*" in
    *tools.hf*) cp out/sft.pt out/smol.pt ;;
    *lessons.reason*) exec {sys.executable} "$@" {REASON} ;;
    *chat.py*) exec {sys.executable} "$@" --max_new_tokens=8 ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


def cells():
    return json.loads(NOTEBOOK.read_text("utf-8"))["cells"]


@pytest.fixture
def folder(chain, tmp_path):
    """A checkout in which run.sh takes no time, and an environment that is ours."""
    shutil.copytree(chain / "data", tmp_path / "data")
    for file in (*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), ROOT / "tools", ROOT / "view",
                 ROOT / "lessons"):
        (tmp_path / file.relative_to(ROOT)).symlink_to(file)
    (tmp_path / "run.sh").write_text(f"cp -r {chain}/out out && python -m view.report\n")
    (tmp_path / "env.sh").touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in (("python", PYTHON), ("uv", "#!/bin/sh\n")):
        (tmp_path / ".venv/bin" / name).write_text(text)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    return tmp_path


def test_the_notebook_has_no_outputs_and_its_scripts_exist():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    text = "".join(line for cell in code for line in cell["source"])
    scripts = re.findall(r"python (?:-m )?([\w.]+)", text)
    assert len(scripts) == 3
    for script in scripts:
        assert (ROOT / f"{script.removesuffix('.py').replace('.', '/')}.py").exists()


def test_every_cell_runs(folder):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=120, resources=dict(
        metadata=dict(path=str(folder)))).execute()
    first, chain, report, chat, real = (
        json.dumps(cell["outputs"]) for cell in notebook.cells if cell["cell_type"] == "code")
    assert first == "[]" and "srcdoc" in report and "out/report.html" in chain
    assert all(f"out/{stage}.pt" in chat for stage in ("pretrain", "sft", "ppo"))
    assert "saved out/real/reason.pt" in real
