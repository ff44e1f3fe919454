"""Checkpoints: one dict of tensors and plain Python, loaded with weights_only=True."""

import dataclasses
import warnings
import zipfile
from pathlib import Path

import torch
from torch.distributed.checkpoint import state_dict as whole_state

from common import fail, writing
from model import GPT, GPTConfig, ScalarGPT
from tokenizer import Tokenizer

MAKERS = {"pretrain": "pretrain.py", "sft": "sft.py", "reward": "reward.py", "ppo": "rlhf_ppo.py"}


def atomic_save(obj, path):
    for part in ("model", "critic"):
        if not all(w.isfinite().all() for w in obj.get(part, {}).values()):
            fail(f"weights of the {part} are no longer finite, so {path} was not written: start "
                 f"over with a smaller --lr and --fresh")
    with writing(path, "wb") as f:
        torch.save(obj, f)


def save_checkpoint(path, *, stage, step, metrics, model, model_config, tokenizer, config, history,
                    **extra):
    """model: a module or its state_dict; tokenizer: a Tokenizer; history: that of the checkpoint we
    started from."""
    config = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("fresh", "debug")}
    weights = model if isinstance(model, dict) else model.state_dict()
    atomic_save({
        "stage": stage, "step": step, "metrics": metrics,
        "model": {k: v.detach().float().cpu() for k, v in weights.items()},
        "model_config": dataclasses.asdict(model_config), "tokenizer": tokenizer.to_dict(),
        "config": config, "history": history + [dict(stage=stage, config=config, metrics=metrics)],
        **extra}, path)


def load_checkpoint(path, stage=None, tokenizer=None):
    """The dict that save_checkpoint wrote. stage: a name or several; tokenizer: the one it must
    have. Stops with one line that names the remedy if the file is not what was asked for."""
    stages = (stage,) if isinstance(stage, str) else stage or tuple(MAKERS)
    named_after = Path(path).stem                     # out/ppo.pt is what rlhf_ppo.py makes
    maker = f"python {MAKERS[named_after if named_after in stages else stages[0]]}"
    ckpt = load_dict(path, maker)
    if not {"stage", "model", "model_config", "tokenizer", "history"} <= ckpt.keys():
        fail(f"{path} is not a checkpoint of this project; `{maker}` makes one")
    if ckpt["stage"] not in stages:
        fail(f"{path} comes from stage '{ckpt['stage']}', but {' or '.join(stages)} is needed here:"
             f" `{maker}` makes one")
    if not is_sound(ckpt):
        fail(f"{path} is damaged: its weights are not those of the model that it describes; run "
             f"`python {MAKERS[ckpt['stage']]} --fresh` again")
    if tokenizer is not None and ckpt["tokenizer"] != tokenizer:
        fail(f"{path} was trained with another tokenizer than the checkpoint it is used with; "
             f"run the stages again from the same pretrained model")
    return ckpt


def is_sound(ckpt):
    """Whether the weights are numbers, and of the shapes that a model of its config has."""
    try:
        with torch.device("meta"):                    # shapes without memory
            config = GPTConfig(**ckpt["model_config"])
            scalar = ckpt["stage"] == "reward"
            model = ScalarGPT(config, lm=ckpt.get("lm", False)) if scalar else GPT(config)
        return (Tokenizer.from_dict(ckpt["tokenizer"]).vocab_size <= config.vocab_size
                and all(w.isfinite().all() for w in ckpt["model"].values())
                and {name: w.shape for name, w in model.state_dict().items()}
                == {name: w.shape for name, w in ckpt["model"].items()})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False


def load_dict(path, maker):
    if not Path(path).is_file():
        fail(f"{path or 'a file without a name'} is missing: `{maker}` makes it")
    try:
        with zipfile.ZipFile(path) as parts, warnings.catch_warnings():
            if parts.testzip():                       # torch doesn't look at the checksums
                raise ValueError
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:          # torch raises whatever the broken bytes lead it to
        fail(f"{path} is damaged or not a checkpoint: delete it and run `{maker}` again")
    if not isinstance(loaded, dict):
        fail(f"{path} is not a checkpoint of this project; `{maker}` makes one")
    return loaded


class Whole:
    """Saves and loads, as if it were in one piece, what Setup.shard has split: the model, or its
    optimizer if that is given. (Every rank must call it.)"""

    def __init__(self, model, optimizer=None):
        self.model, self.optimizer = model, optimizer
        self.options = whole_state.StateDictOptions(full_state_dict=True, cpu_offload=True)

    def state_dict(self):
        if self.optimizer is None:
            return whole_state.get_model_state_dict(self.model, options=self.options)
        return whole_state.get_optimizer_state_dict(self.model, self.optimizer,
                                                    options=self.options)

    def load_state_dict(self, state):
        options = whole_state.StateDictOptions(full_state_dict=True)
        if self.optimizer is None:
            whole_state.set_model_state_dict(self.model, state, options=options)
        else:
            whole_state.set_optimizer_state_dict(self.model, self.optimizer, state, options=options)
