"""Plumbing of calculator.py, constrained.py and look_up.py: the rows that SFT reads in each step,
dialogues and pretraining text to rehearse, as in sft.py."""

import numpy as np
import torch

from common import fail
from sft import batch, pack


class Rows:
    """rows[step]: x, y (batch_size, T) of that step, config.ptx of them pretraining text; plan says
    which of the dialogues [(ids, learned)] stand in which row."""

    def __init__(self, dialogues, tok, T, run, config):
        self.dialogues, self.pad, self.T = dialogues, tok.pad, T
        self.n_text = round(config.batch_size * config.ptx)
        self.n_chat = config.batch_size - self.n_text
        if not self.n_chat or not dialogues:
            fail(f"--ptx={config.ptx} and --n_demos={config.n_demos} leave no dialogues to learn "
                 f"from")
        if (longest := max(len(ids) for ids, _ in dialogues)) > T + 1:
            fail(f"--init={config.init} reads {T} tokens, but a demonstration of this lesson has "
                 f"{longest}")
        self.plan = pack([len(ids) for ids, _ in dialogues], T, config.steps * self.n_chat,
                         np.random.default_rng(config.seed))
        self.corpus = run.corpus(config.text, tok)
        self.corpus.shuffle(config.steps * self.n_text * T + 1, config.seed)

    def __getitem__(self, step):
        plan = self.plan[step * self.n_chat:(step + 1) * self.n_chat]
        x, y = batch(self.dialogues, plan, self.T, self.pad)
        text = self.corpus.rows(step * self.n_text, self.n_text, self.T)
        return torch.cat([x, text[:, :-1]]), torch.cat([y, text[:, 1:]])
