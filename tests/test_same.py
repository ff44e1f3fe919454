"""What another precision and LoRA change. (test_kill.py has what another seed changes.)"""

import pytest
import torch

from answer import log_probs
from rlhf_ppo import policy_loss, value_loss
from tiny import FLAGS, build, read_log, run

# bfloat16 keeps 8 bits of a number, 0.4%. Errors of single numbers largely cancel in a mean.
TOLERANCE = 0.005


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """With weights five times as large as new ones, so that the models are sure of something."""
    folder = build(tmp_path_factory.mktemp("same"), tiny_tokenizer)
    for stage in ("pretrain", "sft", "reward"):
        ckpt = torch.load(folder / f"{stage}.pt", weights_only=True)
        for w in ckpt["model"].values():
            w.mul_(5 if w.dim() > 1 else 1)
        torch.save(ckpt, folder / f"{stage}.pt")
    return folder


@pytest.fixture
def go(folder):
    """go(stage, name, flag, …) runs a stage, which ends well: its checkpoint and its last names."""
    def go(stage, name, *more):
        out = folder / f"{name}_{stage}.pt"
        status, names = run(folder, stage, *FLAGS[stage].split(), f"--out={out.name}", *more)
        assert status == 0
        return out, names
    return go


def losses(go, stage, dtype, *more):
    """What the first step's loss and the held-out loss after it are."""
    out, _ = go(stage, dtype, f"--dtype={dtype}", "--steps=1", *more)
    return {name: row[name] for row in read_log(out.with_suffix(".jsonl"))
            for name in ("loss", "val_loss") if name in row}


@pytest.mark.parametrize("stage, more", [("pretrain", ["--init=pretrain.pt"]), ("sft", []),
                                         ("reward", [])], ids=["pretrain", "sft", "reward"])
def test_the_losses_in_both_precisions_agree_within_half_a_percent(go, stage, more):
    exact, rough = (losses(go, stage, dtype, *more) for dtype in ("float32", "bfloat16"))
    assert exact.keys() == {"loss", "val_loss"} and rough != exact
    assert rough == pytest.approx(exact, rel=TOLERANCE)


def test_ppos_losses_in_both_precisions_agree_within_one_percent(go):
    """On the same answers: drawn in another precision, they would be others. The mean of four
    seeds, since in a handful of answers the errors of the squared values do not cancel."""
    found = torch.zeros(2, 3)                         # precision, loss
    for seed in range(4):
        _, end = go("rlhf_ppo", f"float32_{seed}", "--dtype=float32", "--steps=1", f"--seed={seed}")
        r, config = end["r"], end["config"]
        idx, mask = r.ids, r.mask
        old, values, advantages, returns = (
            a[mask] for a in (r.logp, r.values, r.advantages, r.returns))
        for row, enabled in zip(found, (False, True)):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                logp, _ = log_probs(end["policy"], idx, mask, config.temperature)
                new = end["critic"](idx[:, :-1])[mask[:, 1:]]
            row += torch.stack([
                policy_loss(logp, old, advantages, config.clip)[0].abs().mean(),
                value_loss(new, values, returns, config.clip_value).mean(), logp.mean()])
    exact, rough = found.tolist()
    assert exact != rough and rough == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("stage", ["sft", "reward", "rlhf_ppo"])
def test_lora_changes_the_blocks_matrices_by_its_rank_and_in_sft_new_tokens(go, stage, folder):
    """Those are the special tokens. No other weights change, and the names are those of before."""
    out, end = go(stage, "lora", "--lora=2", "--recompute=true", "--dtype=float32", "--steps=2")
    start, after = (torch.load(path, weights_only=True)["model"] for path in (
        folder / f"{dict(sft='pretrain').get(stage, 'sft')}.pt", out))
    after = {name.removeprefix("gpt."): w for name, w in after.items()}
    assert after.keys() >= start.keys() - {"lm_head.weight"}          # an ordinary checkpoint
    for name in start.keys() & after.keys():
        change = after[name] - start[name]
        if name.startswith("blocks.") and change.dim() == 2:
            assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
        else:
            tokens = {*end["tok"].specials.values()} if stage == "sft" and change.dim() == 2 else ()
            assert {*change.flatten(1).any(1).nonzero().flatten().tolist()} == {*tokens}
