"""Lesson: few-shot prompting. The pretrained model reads examples before the question.

reads   out/pretrain.pt, out/sft.pt, data/town/sft.jsonl (the examples), data/town/test.jsonl
writes  a table, out/few_shot.json with its shares; nothing is trained

    bare     question / answer / ... / question / ->                            / is a line break
    Q, A     Q: question / A: answer / ... / Q: question / A: ->

Completing is not answering. After a bare question the model writes more questions, since most lists
of questions in its text are bare. One example changes that: the model answers, as GPT-3 does (Brown
et al. 2020, figure 2.1). The marks "Q:", "A:", "Item:" and "Solution:" stand nowhere in its text,
so it has them from the lines above. Its text taught it to look there: each sheet of questions in it
has its own marks (data/town.py:sheets; Chan et al. 2022 show what a text must be like for that).

No prompt makes it refuse, or say that it does not know: its text has no words for that. Fine-tuning
teaches both. The prompt ends with "A:", without the space: in the text the space belongs to the
token of the next word, and after a lonely one the model would have to begin with another token.

laptop   python -m lessons.few_shot
"""

import json
from dataclasses import dataclass

import numpy as np

from answer import complete, prompt_ids, respond, response_logp
from checkpoint import load
from common import Basic, Runtime, fail, parse_config, percent, safe, writing
from data.formats import read_demonstrations, read_prompts, split
from data.town import judge
from evaluate import first_line
from lessons.held_out import check_room, of_the_town


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Basic):
    data: str = "data/town/test.jsonl"   # questions about people that no demonstration asks about
    examples: str = "data/town/sft.jsonl"   # demonstrations: examples are chosen from them
    base: str = "out/pretrain.pt"        # the model that completes
    chat: str = "out/sft.pt"             # the model that answers
    out: str = "out/few_shot.json"
    shots: str = "0,1,2,4,8"             # numbers of examples
    n_prompts: int = 300                 # how many of the questions to use
    block_size: int = 448                # the base model's context; it was trained with 256
    max_new_tokens: int = 32


KINDS = ("fact", "sum", "unknown", "wish")     # questions that fit one line, like their answers
FORMS = {"bare": ("", ""), "Q, A": ("Q: ", "A: "), "Item, Solution": ("Item: ", "Solution: ")}


# ---- the idea -------------------------------------------------------------------------------

def document(form, examples, question):
    """examples: [(question, answer)]. The text goes on where the answer to the question begins."""
    ask, say = FORMS[form]
    shown = "".join(f"{ask}{asked}\n{say}{answered}\n" for asked, answered in examples)
    return f"{shown}{ask}{question}\n{say}".rstrip(" ")


def choose(examples, n, question, rng):
    """n different examples, none of them with this question."""
    others = [pair for pair in examples if pair[0] != question]
    return [others[i] for i in rng.permutation(len(others))[:n]]


def share_right(rows, answers):
    """{kind: [share, number of questions]}"""
    right = {kind: [judge(row["prompt"], answer)["right"] for row, answer in zip(rows, answers)
                    if row["kind"] == kind] for kind in KINDS}
    return {kind: [np.mean(verdicts).item(), len(verdicts)] for kind, verdicts in right.items()}


def show(name, right, loss, longest):
    """One row of the table."""
    print(f"{name:26}" + "".join(f"{percent(*right[kind]):>22}" for kind in KINDS)
          + f"{loss:>14}{longest:>10}", flush=True)


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    shots = config.shots.split(",")
    if not all(n.isdecimal() for n in shots):
        fail(f"--shots={config.shots} must be numbers, as in --shots=0,1,4")
    shots = list(map(int, shots))
    rt = Runtime(config)
    base, tok, _ = load(config.base, rt, "pretrain")
    chat, *_ = load(config.chat, rt, "sft", tok)
    # rotary positions are relative, so the model can read on behind its 256 tokens
    if base.config.pos != "rope":
        fail(f"{config.base} has learned positions, which end with its context")
    base.config.block_size = config.block_size

    # ---- data -------------------------------------------------------------------------------

    rows = of_the_town(read_prompts(config.data)[:config.n_prompts], KINDS,
                       f"{config.data}, with --n_prompts={config.n_prompts},")
    demos = of_the_town(read_demonstrations(config.examples), KINDS, config.examples)
    check_room(tok, [r["prompt"] for r in rows], chat.config.block_size, config.max_new_tokens,
               f"--chat={config.chat}")
    train, val = split(demos, "messages")             # val: SFT has not learned from these
    val = [r for r in val if r["kind"] == "fact"]
    shown = {kind: [tuple(m["content"] for m in r["messages"]) for r in train if r["kind"] == kind]
             for kind in KINDS}
    if not val or min(map(len, shown.values())) <= max(shots):
        fail(f"{config.examples} has too few rows for --shots={config.shots}: it needs more of "
             f"each kind, and facts that SFT has not learned from")

    def read(form, n, kind, question, i):
        """What the base model reads: n examples of the kind, then the question."""
        some = choose(shown[kind], n, question, np.random.default_rng((config.seed, i)))
        return [tok.eot] + tok.encode(document(form, some, question))

    def nats(model, ids, ending, space=""):
        """The loss on the labelers' answers about facts, per token."""
        replies = [tok.encode(space + r["messages"][1]["content"]) + ending for r in val]
        logp, count = response_logp(model, tok, ids, replies, rt)
        return f"{-logp.sum() / count.sum():.2f}"

    # ---- the answers ------------------------------------------------------------------------

    samples, found = [], {}
    print(f"{'right':26}" + "".join(f"{kind:>22}" for kind in KINDS)
          + f"{'facts, nats':>14}{'longest':>10}")
    for form in FORMS:
        for n in shots:
            ids = [read(form, n, r["kind"], r["prompt"][0]["content"], i)
                   for i, r in enumerate(rows)]
            replies = complete(base, tok, ids, rt, config.max_new_tokens, 0, tok.eot, batch_size=64)
            lines = [tok.decode([t for t in first_line(tok, reply) if t != tok.eot]).strip()
                     for reply in replies]
            loss = nats(base, [read(form, n, r["kind"], r["messages"][0]["content"], i)
                               for i, r in enumerate(val)], tok.encode("\n"),
                        space=FORMS[form][1][-1:])
            name = f"{form}, {n} examples"
            samples.append((name, tok.decode(replies[0])))
            found[name] = share_right(rows, lines)
            show(name, found[name], loss, max(map(len, ids)))
    texts = [text for text, _ in respond(chat, tok, [r["prompt"] for r in rows], rt,
                                         config.max_new_tokens, 0)]
    ids = [prompt_ids(tok, r["messages"][:1], chat.config.block_size, 64) for r in val]
    samples.append(("SFT, no examples", texts[0]))
    found["SFT, no examples"] = share_right(rows, texts)
    show("SFT, no examples", found["SFT, no examples"], nats(chat, ids, [tok.end]),
         max(map(len, ids)))

    # ---- the shares, and the first of the questions -----------------------------------------

    with writing(config.out) as f:
        json.dump(found, f, indent=1)
    print(f"\n{safe(rows[0]['prompt'][0]['content'])}")
    for name, text in samples:
        print(f"    {name:26} {json.dumps(text)}")
