"""The models of view.page, and the one queue in which all questions wait for them."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch

import chat
from answer import prompt_room
from checkpoint import load_checkpoint
from reward import encode_answer, score_all
from tools.rankings import stamp

STAGES = ["pretrain", "sft", "ppo"]
MAX_WAITING = 100         # questions in the queue
N_TOP = 8                 # alternatives to each token


# ---- models ---------------------------------------------------------------------------------

class Shelf:
    """The models of a folder, by the names of their files. A file that has changed is loaded into a
    new model, which then takes the old one's place; if that fails, the old one stays."""

    def __init__(self, folder, rt):
        self.folder, self.rt, self.models, self.seen = Path(folder), rt, {}, {}

    def refresh(self):
        paths = {path.stem: path for path in sorted(self.folder.glob("*.pt"))
                 if not path.stem.endswith(".nan")}
        for name in self.models.keys() - paths.keys():
            del self.models[name], self.seen[name]
        for name, path in paths.items():
            version = stamp(path)
            if self.seen.get(name) != version:
                self.seen[name] = version             # what is written from now on is read later
                with suppress(SystemExit):            # load_checkpoint has said why
                    self.models[name] = self.load(path)

    def load(self, path):
        """A speaker: what a checkpoint holds, such as its stage, step, model and tokenizer."""
        speaker = SimpleNamespace(**load_checkpoint(path))
        speaker.model.to(self.rt.device).eval()
        return speaker

    def beside(self, name, speaker):
        """The model of that name, if it reads the same tokens, and as many."""
        found, config = self.models.get(name), speaker.model.config
        fits = found and (found.tokenizer.fingerprint == speaker.tokenizer.fingerprint
                          and found.model.config.vocab_size == config.vocab_size
                          and found.model.config.block_size >= config.block_size)
        return found if fits else None

    def names(self):
        """Those who answer, in the order of the stages."""
        found = [dict(name=name, stage=s.stage, step=s.step) for name, s in [*self.models.items()]
                 if s.stage != "reward"]
        return sorted(found, key=lambda m: (STAGES.index(m["stage"]), m["name"]))


@torch.no_grad()
def explain(speaker, sft, ids, said, rt):
    """What the model thought at each token of `said`, which followed `ids`, at temperature 1."""
    idx = torch.tensor([ids + said], device=rt.device)
    with rt.autocast():
        logp, ref = (s.model(idx[:, :-1])[0, len(ids) - 1:].float().log_softmax(-1) if s else None
                     for s in (speaker, sft))         # (n, V) each
    p, tok = logp.exp(), speaker.tokenizer
    entropy = -(p * logp).sum(-1)                     # (n,) nats
    kl = None if ref is None else (p * (logp - ref)).sum(-1)          # (n,) nats
    best = p.topk(min(N_TOP, p.size(-1)))             # (n, N_TOP)

    def token(id, p):
        special = id in tok.specials.values() or id not in tok.tokens
        return dict(id=id, p=round(p, 4), special=special,
                    text=tok.show(id)[1:-1] if id in tok.tokens else "?")

    return [dict(token(id, p[t, id].item()), entropy=round(entropy[t].item(), 4),
                 kl=None if kl is None else round(kl[t].item(), 4),
                 top=[token(*pair) for pair in zip(best.indices[t].tolist(),
                                                   best.values[t].tolist())])
            for t, id in enumerate(said)]


# ---- questions wait in one queue ------------------------------------------------------------

def until(pieces, stop):
    """The text of the pieces up to the first of the strings `stop`: ["a", "bc"], ["c"] -> "a", "b".
    The last characters wait, since a stop may have begun there."""
    text, sent, wait = "", 0, max(map(len, stop), default=1) - 1
    for piece in pieces:
        text += piece
        found = [at for at in map(text.find, stop) if at >= 0]
        ready = max(sent, min(found, default=len(text) - wait))
        yield text[sent:ready]
        if found:
            return
        sent = ready
    yield text[sent:]


@dataclass(eq=False)
class Job:
    """One question to some models."""
    asks: list                     # each has a model, messages and a prefix
    settings: chat.Config
    plain: bool = False            # a program wants the text as it is, and nothing about it
    seed: int | None = None        # None: one that no other job has
    stop: tuple = ()               # strings that end the answer


class Worker:
    """Answers one question after the other. One thread loads the models and generates; all else
    happens in the server's loop."""

    def __init__(self, shelf):
        self.shelf, self.rt, self.answered = shelf, shelf.rt, 0
        self.waiting, self.moved = [], asyncio.Event()                # the first is being answered
        self.thread = ThreadPoolExecutor(1)

    def in_thread(self, act, *arguments):
        return asyncio.get_running_loop().run_in_executor(self.thread, act, *arguments)

    async def names(self):
        """Who answers now; a file may have changed since the last question."""
        if not self.waiting:
            await self.in_thread(self.shelf.refresh)
        return self.shelf.names()

    async def events(self, job):
        """What happens to a job, until its end. If nobody listens any more, the job leaves the
        queue, and no further token is generated."""
        if len(self.waiting) >= MAX_WAITING:
            yield dict(kind="error", status=429,
                       text=f"{MAX_WAITING} questions wait: please try again soon")
            yield dict(kind="end")
            return
        answers = self.answers(job)
        self.waiting.append(job)
        try:
            while ahead := self.waiting.index(job):
                yield dict(kind="queue", ahead=ahead)
                await self.moved.wait()
            yield dict(kind="queue", ahead=0)
            while event := await self.in_thread(next, answers, None):
                yield event
        except Exception as error:                    # one bad question must not end the others
            print(f"page.py: {type(error).__name__}: {error}", file=sys.stderr)
            yield dict(kind="error", text=f"{type(error).__name__}: see the terminal")
        finally:
            self.thread.submit(answers.close)         # after the token that it may be generating
            self.waiting.remove(job)
            self.moved.set()                          # who waits looks at its place again
            self.moved = asyncio.Event()
        yield dict(kind="end")

    def answers(self, job):
        self.shelf.refresh()
        for k, ask in enumerate(job.asks):
            for kind, event in self.answer(job, ask):
                yield dict(event, kind=kind, k=k)

    def answer(self, job, ask):
        """The events of one model's answer: its text, then its tokens and its score."""
        speaker = self.shelf.models.get(ask.model)
        if not speaker or speaker.stage == "reward":
            yield "error", dict(status=404, text=f"{ask.model} is not there any more")
            return
        tok, T = speaker.tokenizer, speaker.model.config.block_size
        settings, asked, prefix = job.settings, ask.messages, ask.prefix
        room = prompt_room(T, settings.max_new_tokens)
        if speaker.stage == "pretrain":               # as in chat.py
            kept = asked = asked[:asked[0]["role"] == "system"] + asked[-1:]
            ids = chat.as_text(tok, asked, "\n" if len(job.asks) > 1 else "")
        else:
            ids, kept = chat.as_dialogue(tok, asked, room)
        if not set(prefix) <= tok.tokens.keys() - set(tok.specials.values()):
            yield "error", dict(text="this answer comes from another tokenizer")
            return
        if len(ids) > room or len(ids) + len(prefix) >= T:
            yield "error", dict(status=400, text=f"this has {len(ids) + len(prefix)} tokens, but "
                                f"{ask.model} has room for {room}: please use fewer words")
            return

        self.answered += 1
        settings = replace(settings, max_new_tokens=max(1, settings.max_new_tokens - len(prefix)))
        number = self.answered if job.seed is None else job.seed
        yield "start", dict(text=chat.safe(tok.decode(prefix)), shortened=len(kept) < len(asked))
        said = [*prefix]
        pieces = chat.answer(speaker.model, tok, ids + prefix, self.rt, settings, number, said,
                             str if job.plain else chat.safe)
        yield from (("text", dict(text=text)) for text in until(pieces, job.stop) if text)
        text = tok.decode([id for id in said if id not in tok.specials.values()])
        if job.plain:
            ended = said[-1] in tok.specials.values() or any(stop in text for stop in job.stop)
            yield "done", dict(reason="stop" if ended else "length", counts=(len(ids), len(said)))
            return
        score, judge = None, self.shelf.beside("reward", speaker)
        if judge:
            row = encode_answer(tok, kept, text, judge.model.config.block_size)
            score = score_all(judge.model, [row], tok, self.rt).item()
        tokens = explain(speaker, self.shelf.beside("sft", speaker), ids, said, self.rt)
        yield "done", dict(text=chat.safe(text), raw=text, score=score, tokens=tokens)
