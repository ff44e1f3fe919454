import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

# The tests check ideas, not hardware: they and the scripts that they start run on the CPU. On a GPU
# sums have another order, so runs are not equal bit for bit. test_gpu.py starts some on TEST_GPUS.
if "TEST_GPUS" not in os.environ:
    os.environ["TEST_GPUS"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Nor do they depend on whether this CPU multiplies bfloat16. DTYPE=bfloat16 tries that one.
os.environ.setdefault("DTYPE", "float32")

# Nor on what else runs here (common.Cores). At their sizes a second thread brings nothing anyway.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.fixture(scope="session", autouse=True)
def away(tmp_path_factory):
    """No test stands in the checkout, where the user's data/ and out/ lie: neither the fixtures
    that several tests share, nor the tests (`alone`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("away"))
        yield


@pytest.fixture(autouse=True)
def alone(tmp_path):
    """Each test stands in a folder of its own. Neither Ctrl-C nor uncaught errors go on to what a
    run or parse_config has set up in it."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "excepthook", sys.excepthook)
        yield
    signal.signal(signal.SIGINT, before)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes, and runs only when asked: -m slow")
    config.option.markexpr = config.option.markexpr or "not slow"


def pytest_collection_modifyitems(items):
    """The files that take longest first: at the end neither of two workers is alone with one."""
    longest = ("test_misuse test_walk test_gpu test_ddp test_compare_methods test_town "
               "test_students").split()
    items.sort(key=lambda item: (longest + [item.path.stem]).index(item.path.stem))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """About 300 tokens, learned from a few sentences: enough for words that are not one byte."""
    from tokenizer import Tokenizer
    text = ("Ada Ashton lives on Mill Street. She works as a baker and has a cat. "
            "What is 12 + 30? 12 + 30 = 42. Once upon a time a fox lived by the river. ")
    return Tokenizer.train(text * 4, 300, pattern="digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """Tiny data and random models, for a file whose tests write there."""
    from tiny import build
    return build(tmp_path_factory.mktemp("tiny"), tiny_tokenizer)


@pytest.fixture
def hamlet(monkeypatch):
    """A town of few people, for lessons/data, which asks a model about all of them; and easy sums,
    for lessons/reason, which draws thousands."""
    from data import town
    from lessons import chain_of_thought, held_out    # before: it compares with the real town
    few = dict(list(held_out.the_facts().items())[:6])
    monkeypatch.setattr(town, "the_facts", lambda: few)
    monkeypatch.setattr(chain_of_thought, "draw",
                        lambda rng, n, held_out: [rng.randint(1, 5)] * n)


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """A folder in which the whole chain has run, at a tiny size. The first of xdist's workers that
    needs it makes it for all of them, so tests only read there."""
    from tiny import CHAIN, run
    fcntl, folder = pytest.importorskip("fcntl"), tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "chain"
    folder.mkdir(exist_ok=True)
    with open(folder / "chain.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not (folder / "out/ppo.pt").exists():
            for script, flags in CHAIN.items():
                assert run(folder, script, *flags.split())[0] == 0, script
    return folder


@pytest.fixture(scope="module")
def own_chain(chain, tmp_path_factory):
    """A copy of the chain, for a file whose tests write there."""
    return shutil.copytree(chain, tmp_path_factory.mktemp("chain"), dirs_exist_ok=True)


@pytest.fixture(scope="module")
def seed0(chain, tmp_path_factory):
    """A folder with what lab/seeds.py leaves of one seed, from the tiny chain. What the lab runs
    there is short, and runs in copies of this process."""
    from lab import chains
    from tiny import ROOT, SHORT, as_copy, run
    folder, real = tmp_path_factory.mktemp("seeds"), chains.Chain.run
    shutil.copytree(chain / "out", folder / "out/seed0")
    (folder / "data").mkdir()
    (folder / "data/town").symlink_to(chain / "data/town")
    for script in ("data/town.py", *(script.name for script in ROOT.glob("*.py"))):
        (folder / script).symlink_to(ROOT / script)
    at, flags = "out/seed0", [f"--{k}={v}" for k, v in SHORT["evaluate.py"].items()]
    assert run(folder, "evaluate", *flags, f"--reward={at}/reward.pt",
               f"--comparisons={at}/comparisons.jsonl", f"--out={at}/scoreboard.json",
               f"--models={at}/pretrain.pt,{at}/sft.pt,{at}/ppo.pt")[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "subprocess", SimpleNamespace(run=as_copy))
        patch.setattr(chains.Chain, "run", lambda chain, script, name, **flags: real(
            chain, script, name, **flags | SHORT.get(script, {})))
        yield folder


@pytest.fixture(scope="module")
def browser():
    """A browser without a window, a new one for each file: a page of another file may still be at
    work. Tests that use it are skipped where there is none."""
    pytest.importorskip("selenium", reason="needs selenium")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("needs a browser: apt install chromium chromium-driver")
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", "no-first-run",
                 "disable-background-networking", "remote-debugging-pipe"):
        options.add_argument(f"--{flag}")
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, driver)
    browser.set_window_size(1280, 900)
    yield browser
    browser.quit()


@pytest.fixture
def run_script(capsys):
    """run_script(script, flag, …) runs a script here: its exit status, stdout and stderr."""
    from tiny import run

    def call(script, *flags):
        status, _ = run(".", script, *map(str, flags))
        return status, *capsys.readouterr()
    return call


@pytest.fixture
def refused(capsys, run_script):
    """refused(f, …) calls f, or runs the script of that name with these flags. It must end with
    status 1 and one line on stderr: that line."""
    def call(f, *args, **kwargs):
        if isinstance(f, str):
            status, _, err = run_script(f, *args)
        else:
            with pytest.raises(SystemExit) as end:
                f(*args, **kwargs)
            status, err = end.value.code, capsys.readouterr().err
        assert status == 1 and err.count("\n") == 1, err
        return err
    return call
