"""Functions of one's own, FILE.py:name: a labeler, a reward, a judge.

What they may get wrong is told with the prompt and the response that show it.
"""

import importlib.util
import sys
from pathlib import Path

import torch

from common import fail


def load_function(spec):
    """"FILE.py:name" -> the function."""
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        fail(f"{spec}: give a function as FILE.py:name; there is no file {path or spec}")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules.setdefault(Path(path).stem, module)   # where dataclasses look for it
    module_spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        fail(f"{path} has no function named {name}")
    return getattr(module, name)


def get_scores(function, prompts, responses, name):
    """What a function of one's own says, (N,); if it fails, the first answer that makes it fail."""
    try:
        scores = function(prompts, responses)
    except Exception as error:
        raise ValueError(f"{name}: {type(error).__name__}: {error} (--debug=true shows where)"
                         f"{first_failure(function, prompts, responses)}") from error
    return check_scores(scores, prompts, responses, name)


def first_failure(function, prompts, responses):
    """The first pair with which the function fails when it is alone, in words; "" if none does."""
    for prompt, response in zip(prompts, responses):
        try:
            function([prompt], [response])
        except Exception:
            return in_words(prompt, response)
    return ""


def in_words(prompt, response):
    return f" for the prompt {prompt[-1]['content']!r} and the response {response!r}"


def check_scores(scores, prompts, responses, name):
    """A reward of one's own must give one finite number per answer."""
    try:
        scores = torch.as_tensor(scores, dtype=torch.float32).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} gave {type(scores).__name__}, not numbers: {error}") from error
    if scores.shape != (len(responses),):
        raise ValueError(f"{name} gave scores of shape {tuple(scores.shape)} for {len(responses)} "
                         f"responses; it should give one number each")
    bad = torch.nonzero(~scores.isfinite()).flatten().tolist()
    if bad:
        raise ValueError(f"{name} gave {scores[bad[0]].item()}"
                         f"{in_words(prompts[bad[0]], responses[bad[0]])}")
    return scores


def verdicts_of(judge, prompts, responses, name):
    """What a judge says of each: [{"grade", "right", "unsure", "refusal"}]."""
    verdicts = []
    for prompt, response in zip(prompts, responses):
        try:
            verdict = judge(prompt, response)
            missing = {"grade", "right", "unsure", "refusal"} - set(verdict)
        except Exception as error:
            raise ValueError(f"{name}: {type(error).__name__}: {error}"
                             f"{in_words(prompt, response)}") from error
        if missing:
            raise ValueError(f"{name} gave no {', '.join(sorted(missing))}"
                             f"{in_words(prompt, response)}")
        verdicts.append(verdict)
    return verdicts
