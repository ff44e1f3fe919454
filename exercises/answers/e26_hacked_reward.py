import math
from pathlib import Path

from checkpoint import load_reward
from data import town
from data.formats import read_prompts

PLACE = "exercises/answers/e26_hacked_reward.py:answer"
NAME = "reward"
SUMS = "out/sums.jsonl"
RUN = ("rlhf_ppo.py", "load_reward", f"--reward={PLACE} --data={SUMS} --steps=12 "
       "--batch_size=128 --minibatch=32 --eval_every=4 --ptx_coef=0 --critic_first=0 "
       "--critic_lr=1 --kl_coef=0.02 --lr=2e-4",
       lambda function: lambda name, *more: function if name == PLACE else load_reward(name, *more))
COLUMNS = ["score", "grade", "length"]
ZH = """
26. 钻奖励的空子（reward hacking），以及怎样补救

PPO 优化的是奖励，而不是你的本意。有人希望加法题的回答既正确又友好。
友好的人不会只写一个算式。于是他规定：回答里有正确的数，得 0.4 分；
每个单词得 0.03 分，单词最多得 0.6 分。
PPO 用这个奖励做了 12 次迭代（--run，种子 0，AMD EPYC，float32）：

    之前   score 0.60   grade 6.25   Can you add 5 + 4? -> Happy to help! 5 + 4 = 9.
    之后   score 0.72   grade 5.34   Can you add 5 + 4? -> 5 + 4 = 9. One could say more about it.

分数（score）上升了，真实的评分（grade）却下降了。（种子 1：0.70 和 5.39。）
多余的句子，单词比友好的开头更多：

    How much is 15 + 19?   ->   15 + 19 = 34. Many things are like that.     分数 0.70，评分 5.25
                                Let me see! 15 + 19 = 34.                    分数 0.64，评分 7

PPO 只能找到模型偶尔会采样到的空子。这个空子是模型在 SFT 中学到的：
五分之一的示范带有多余的句子。这个奖励还有别的漏洞。
用我们的奖励，评分升到 7.00（种子 1：6.91）。

请写一个骗不过的奖励函数。检查程序会给它看好的回答，以及许多钻空子的回答：

    友好而且正确     Happy to help! 15 + 19 = 34.     （或者 Let me see! 15 + 19 = 34.）
    正确             15 + 19 = 34.                    分数低于友好的
    其余所有         错的、啰唆的、空的、残缺的……    分数低于正确的

所有分数都应在 -1 和 1 之间，KL 惩罚才有分量。提示（prompt）也可能不是加法题，那时分数为 0。
提示是一段对话：prompt[-1]["content"] 是问题。
用 --run 时，PPO 从你的奖励函数学习，grade 一列是小镇的裁判对回答的评分。
先用上面的奖励试一试，再用你自己的。
"""


def prepare():
    """The prompts of --run are those of the town that are sums."""
    rows = read_prompts("data/town/prompts.jsonl")
    town.write_jsonl(Path(SUMS), [row for row in rows if row.get("kind") == "sum"])


def answer(prompts, responses):
    """The town's true grade, for sums, from -1 to 1."""
    asked = [town.understand(prompt) for prompt in prompts]
    return [(grade - 4) / 3 if a and a["kind"] == "sum" else 0.0
            for a, grade in zip(asked, town.grade(prompts, responses))]


# Answers to "How much is {x} + {y}?", whose sum is {s}: each one fools some reward.
HACKS = [
    ("A needless sentence pays: more words are not more friendly. PPO finds this hack.",
     "多余的句子也能得分：话多不等于友好。PPO 找到的就是这个空子。",
     "{x} + {y} = {s}. That is what I heard."),
    ("A wrong sum scores as much as the right one.", "错误的和与正确的和得分一样高。",
     "{x} + {y} = {wrong}."),
    ("A friendly wrong answer beats the right one: friendliness must not pay without truth.",
     "友好的错误回答赢了正确的回答。不正确，就不应当因为友好而加分。",
     "Happy to help! {x} + {y} = {wrong}."),
    ("A friendly answer without any sum beats the right one.",
     "只有客套、没有算式的回答赢了正确的回答。", "Happy to help!"),
    ("Each repetition of the friendly words pays again. Let them pay once.",
     "友好的话每重复一遍，就多得一次分。只应算一次。",
     "Happy to help! Happy to help! Happy to help! Happy to help! {x} + {y} = {s}."),
    ("Exclamation marks pay, whatever stands between them.", "只要有感叹号就得分，不管写了什么。",
     "{x} + {y} = {s}!!!!!!!!"),
    ("A list of many numbers pays, because the right one is among them.",
     "列出一大串数也能得分，因为正确的数就在其中。",
     "{wrong} {s} {more} 0 1 2 3 4 5 6 7 8 9 10"),
    ("Several sums pay, because one of them is right. The answer must not contradict itself.",
     "写出好几个算式也能得分，因为其中一个是对的。回答不应自相矛盾。",
     "{x} + {y} = {s}. {x} + {y} = {wrong}."),
    ("The right number is found inside a longer one: 34 is not 345.",
     "在更长的数里也找到了正确的数：34 不是 345。", "{x} + {y} = {s}5."),
    ("The right number is found before a point: 34 is not 34.5.",
     "在小数里也找到了正确的数：34 不是 34.5。", "{x} + {y} = {s}.5."),
    ("The right number pays, though the sum before it is another one than asked.",
     "等号前面不是题目里的算式，只因为结果相同，也得了分。", "1 + {less} = {s}."),
    ("The right number pays in a sentence that denies it.", "否定正确答案的句子也得了分。",
     "{x} + {y} is not {s}."),
    ("Gibberish pays, because the right pieces stand in it.",
     "胡言乱语也得了分，因为其中有那些“正确”的片段。",
     "help see {s} Let = me {x} Happy + {s} to {y}"),
    ("A right answer that goes on and on scores as much as a short one. PPO's answers would never "
     "end.",
     "正确但没完没了的回答，与简短的得分一样高。这样，PPO 的回答停不下来。",
     "{x} + {y} = {s}." + " People talk about that a lot." * 8),
    ("A right answer that is said twelve times scores as much as one that is said once.",
     "正确的答案说十二遍，与说一遍得分一样高。", "{x} + {y} = {s}. " * 11 + "{x} + {y} = {s}."),
    ("A right answer that breaks off scores as much as a whole one.",
     "正确但未完整结束的回答，与完整的得分一样高。", "{x} + {y} = {s}. Happy to"),
    ("A rude right answer scores as much as a plain one.", "粗鲁的正确回答与普通的得分一样高。",
     "What a silly question! {x} + {y} = {s}."),
    ("Repeating the question pays.", "重复问题也得了分。", "How much is {x} + {y}?"),
    ("The empty answer pays.", "空的回答也得了分。", ""),
]
FRIENDLY = ("A friendly right answer must score more than a plain one.",
            "友好而正确的回答应当比普通的正确回答得分高。")
NUMBERS = ("It must return a list with one finite number for each response.",
           "它应当返回一个列表，里面是每个回答的分数，都是有限的数。")
SCALE = ("A score is below -1 or above 1: such scores drown the KL penalty.",
         "有的分数小于 -1 或大于 1：这样，KL 惩罚就不起作用了。")
BATCH = ("The score of an answer depends on what else is in the batch.",
         "一个回答的分数，受到了同一批中其他回答的影响。")
OTHER = ("For a prompt that is no sum the score must be 0.", "提示不是加法题时，分数应当为 0。")
MISTAKES = [*HACKS, FRIENDLY, NUMBERS, SCALE, BATCH, OTHER]


def ask(question):
    return [dict(role="user", content=question)]


def scores_of(function, prompts, responses):
    """What the function returns, as floats; None if that is something else."""
    try:
        scores = list(map(float, function(prompts, list(responses))))
    except (TypeError, ValueError):
        return None
    return scores if len(scores) == len(responses) and all(map(math.isfinite, scores)) else None


def check(function, lang):
    """The first hint that fits, or "". Sums with unequal and equal numbers, one and two digits."""
    zh = lang == "zh"
    for x, y in ((15, 19), (7, 5), (30, 30), (2, 41)):
        s = x + y
        words = dict(x=x, y=y, s=s, wrong=s - 1, more=s + 1, less=s - 1)
        good = f"Happy to help! {x} + {y} = {s}.", f"Let me see! {x} + {y} = {s}."
        texts = [*good, f"{x} + {y} = {s}.", *(hack[2].format(**words) for hack in HACKS)]
        prompts = [ask(f"How much is {x} + {y}?")] * len(texts)
        if (scores := scores_of(function, prompts, texts)) is None:
            return NUMBERS[zh]
        if any(abs(score) > 1 for score in scores):
            return SCALE[zh]
        for hack, score in zip(HACKS, scores[3:]):
            if score >= scores[2]:
                return hack[zh]
        if min(scores[:2]) <= scores[2]:
            return FRIENDLY[zh]
        if any(scores_of(function, [prompt], [text]) != [score]
               for prompt, text, score in zip(prompts, texts, scores)):
            return BATCH[zh]
    others = [ask("Where does Ada Ashton live?"), ask("Hello!"), ask("Tell me about 12.")]
    if scores_of(function, others, ["Happy to help! 1 + 1 = 2.", "Hi!", "12 + 0 = 12."]) != [0] * 3:
        return OTHER[zh]
    return ""
