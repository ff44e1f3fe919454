import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)    # at the tests' sizes a second thread costs more than it brings


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes, and runs only when asked: -m slow")
    config.option.markexpr = config.option.markexpr or "not slow"


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """About 300 tokens, learned from a few sentences: enough for words that are not one byte."""
    from tokenizer import Tokenizer
    text = ("Ada Ashton lives on Mill Street. She works as a baker and has a cat. "
            "What is 12 + 30? 12 + 30 = 42. Once upon a time a fox lived by the river. ")
    return Tokenizer.train(text * 4, 300, pattern="digits")


@pytest.fixture
def refused(capsys):
    """refused(f, …) calls f, which must end with status 1 and one line on stderr: that line."""
    def call(f, *args, **kwargs):
        with pytest.raises(SystemExit) as end:
            f(*args, **kwargs)
        said = capsys.readouterr().err
        assert end.value.code == 1 and said.count("\n") == 1
        return said
    return call
