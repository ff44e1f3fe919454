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


@pytest.mark.parametrize("stages", ["sft", "pretrain sft", None])
def test_a_checkpoint_holds_all_that_is_needed_to_go_on(saved, tiny_tokenizer, stages):
    ckpt = load_checkpoint(saved, stages, tiny_tokenizer)
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


@pytest.mark.parametrize("path, stages, maker", [
    ("out/reward.pt", "reward", "reward.py"), ("mine.pt", "sft ppo", "sft.py"),
    ("out/ppo.pt", "sft ppo", "rlhf_ppo.py"), ("mine.pt", None, "pretrain.py")])
def test_a_missing_checkpoint_is_named_with_what_makes_it(path, stages, maker, refused):
    assert f"{path} is missing: `python {maker}` makes it" in refused(load_checkpoint, path, stages)


class Bomb:
    """Unpickled, it makes a folder."""
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", [
    {"weight": torch.ones(3)}, [1, 2], torch.ones(3), {"stage": "sft"}, {"model_config": {}},
    b"", b"\0" * 1000, b"Once upon a time\n", b"PK\3\4" + b"x" * 99, 0.01, 0.5, 0.99,
    pickle.dumps(dict(stage="sft", model=Bomb()))], ids=str)
def test_a_file_of_another_kind_or_cut_short_is_refused_and_stays(saved, content, refused):
    whole = saved.read_bytes()
    if isinstance(content, float):                    # a share of the checkpoint
        content = whole[:int(content * len(whole))]
    if isinstance(content, bytes):
        saved.write_bytes(content)
    else:
        torch.save(content, saved)
    before = saved.read_bytes()
    said = refused(load_checkpoint, saved, "pretrain")
    assert f"{saved} is damaged or not a checkpoint: run `python pretrain.py` again" in said
    assert saved.read_bytes() == before and not os.path.exists("exploded")


def test_a_single_wrong_bit_in_the_weights_is_found(saved, refused):
    content = bytearray(saved.read_bytes())
    weights = torch.load(saved, weights_only=True)["model"]["wte.weight"].numpy().tobytes()
    content[content.index(weights) + len(weights) // 2] ^= 1
    saved.write_bytes(content)
    assert f"{saved} is damaged" in refused(load_checkpoint, saved, "sft")


def test_a_checkpoint_for_which_there_is_no_memory_is_not_called_damaged(saved, monkeypatch):
    monkeypatch.setattr(torch, "load", Mock(side_effect=RuntimeError(
        "DefaultCPUAllocator: not enough memory")))
    with pytest.raises(RuntimeError, match="not enough memory"):
        load_checkpoint(saved, "sft")


def test_weights_that_are_not_finite_are_named_and_not_saved(refused):
    said = refused(atomic_save, dict(model={"a": torch.ones(1), "b": torch.tensor([torch.nan])}),
                   "sft.pt")
    assert "weights of the model are not finite (b)" in said and not os.listdir()
