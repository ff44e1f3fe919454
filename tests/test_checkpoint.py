import os
import pickle
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from checkpoint import atomic_save, load, load_checkpoint, save_checkpoint
from model import GPT, GPTConfig
from pretrain import Config


@pytest.fixture
def saved(tmp_path, tiny_tokenizer):
    """A checkpoint of stage sft; its path."""
    torch.manual_seed(0)
    config = GPTConfig(block_size=8, vocab_size=tiny_tokenizer.vocab_size, n_layer=1, n_embd=16)
    path = tmp_path / "new folder/sft.pt"
    save_checkpoint(path, stage="sft", step=3, metrics=dict(val_loss=1.5), run=[1, 2],
                    model=GPT(config).bfloat16(), model_config=config, tokenizer=tiny_tokenizer,
                    config=Config(steps=10, fresh=True),
                    history=[dict(stage="pretrain", config={}, metrics={})])
    return path


def test_a_checkpoint_holds_all_that_is_needed_to_go_on(saved, tiny_tokenizer):
    ckpt = load_checkpoint(saved, "sft", tiny_tokenizer)
    assert (ckpt["stage"], ckpt["step"], ckpt["metrics"]) == ("sft", 3, dict(val_loss=1.5))
    assert [entry["stage"] for entry in ckpt["history"]] == ["pretrain", "sft"]
    assert ckpt["config"]["steps"] == 10 and not {"fresh", "debug"} & ckpt["config"].keys()
    assert ckpt["run"] == [1, 2]
    torch.manual_seed(0)
    model = GPT(ckpt["model"].config).bfloat16().float()
    torch.testing.assert_close(ckpt["model"].state_dict(), model.state_dict(), rtol=0, atol=0)
    weights = torch.load(saved, weights_only=True)["model"].values()
    assert {w.dtype for w in weights} == {torch.float32}              # whatever it was trained in


def test_a_model_is_loaded_to_be_trained_or_frozen_in_half_the_memory(saved, tiny_tokenizer):
    rt = SimpleNamespace(device="cpu", dtype=torch.bfloat16)
    (model, tok, history), (frozen, *_) = (load(saved, rt, frozen=f) for f in (False, True))
    assert tok.to_dict() == tiny_tokenizer.to_dict() and history[-1]["stage"] == "sft"
    assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {(True, torch.float32)}
    assert not any(p.requires_grad for p in frozen.parameters())
    in_blocks = [p for p in frozen.blocks.parameters() if p.dim() == 2]
    assert {p.dtype for p in in_blocks} == {torch.bfloat16}


def test_a_checkpoint_of_a_stage_that_is_wanted_is_loaded(saved):
    for stages in ("sft", "pretrain sft", None):
        assert load_checkpoint(saved, stages)["stage"] == "sft"


def test_a_missing_checkpoint_is_named_with_what_makes_it(tmp_path, refused):
    said = refused(load_checkpoint, tmp_path / "reward.pt", "reward")
    assert "reward.pt is missing: `python reward.py`" in said


class Bomb:
    """Unpickled, it makes a folder."""
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", [
    {"weight": torch.ones(3)}, [1, 2], torch.ones(3), {"stage": "sft"}, {"model_config": {}},
    b"", b"\0" * 1000, b"Once upon a time\n", b"PK\3\4" + b"x" * 99,
    pickle.dumps(dict(stage="sft", model=Bomb()))], ids=str)
def test_a_file_of_another_kind_is_refused_and_need_not_go(tmp_path, content, refused):
    path = tmp_path / "notes.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    said = refused(load_checkpoint, path, "pretrain")
    assert f"{path} is damaged or not a checkpoint: run `python pretrain.py` again" in said
    assert os.listdir() == ["notes.pt"]               # nothing has exploded


def test_a_truncated_checkpoint_is_called_damaged(saved, refused):
    whole = saved.read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        saved.write_bytes(whole[:int(share * len(whole))])
        assert f"{saved} is damaged or not a checkpoint" in refused(load_checkpoint, saved, "sft")


def test_a_checkpoint_for_which_there_is_no_memory_is_not_called_damaged(saved, monkeypatch):
    monkeypatch.setattr(torch, "load", Mock(side_effect=RuntimeError(
        "DefaultCPUAllocator: not enough memory")))
    with pytest.raises(RuntimeError, match="not enough memory"):
        load_checkpoint(saved, "sft")


def test_weights_that_are_not_finite_are_named_and_not_saved(tmp_path, refused):
    said = refused(atomic_save, dict(model={"a": torch.ones(1), "b": torch.tensor([torch.nan])}),
                   tmp_path / "sft.pt")
    assert "weights of the model are not finite (b)" in said and not os.listdir(tmp_path)
