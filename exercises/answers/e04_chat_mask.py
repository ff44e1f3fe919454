from tokenizer import PATTERNS, Tokenizer

NAME = "encode_chat"
COLUMNS = ["val_loss", "val_token_accuracy"]
ZH = """
4. 对话掩码

一段对话变成一行词元（token）。特殊词元说明是谁在说话，<|end|> 表示这段话说完了。
监督微调（SFT）时，模型读全部内容，但只学助手（assistant）说的话。
掩码（mask）标出要学的位置：要学的词元上是 1，其余是 0。

    ids   <|endoftext|> <|user|> H i <|end|> <|assistant|> Y o <|end|>
    mask  0             0        0 0 0       0             1 1 1

助手的话后面的 <|end|> 要学：模型这样才学会停下来。<|assistant|> 不学：它由程序写。
如果助手什么也没说（content.strip() 为空），这段话只读不学。
reply 为真时，最后加一个 <|assistant|>，请模型回答；它的掩码是 0。

tok.encode(text) 给出文本的 ids。特殊词元是 tok.eot（<|endoftext|>）、tok.end、tok.assistant，
也可以按名字取：tok.specials["<|user|>"]。文本里写着的 "<|end|>" 只会变成普通的 ids，
不会变成特殊词元。
"""


class Bytes(Tokenizer):
    """A tokenizer without merges, which can't be changed."""
    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return "tok"


def install(function):
    Tokenizer.encode_chat = function


RUN = "sft.py", install, "--steps=200 --eval_every=50 --ptx=0"


def answer(tok, messages, reply=False):
    return Tokenizer.encode_chat(tok, messages, reply)


def cases():
    tok = Bytes(PATTERNS["digits"], list(range(256)), {})
    for dialogue in ("user Hi", "user Hi/assistant Yo", "system Be brief/user 1+1/assistant 2",
                     "user a/assistant b/user c/assistant d", "user <|end|>/assistant <|user|>",
                     "user a/assistant  /user b/assistant c"):
        turns = [turn.split(" ", 1) for turn in dialogue.split("/")]
        messages = [dict(role=role, content=content) for role, content in turns]
        yield tok, messages
        yield tok, messages, True


def written_out(tok, messages, reply=False):
    ids, mask = [tok.eot], [0]
    for message in messages:
        role, content = message["role"], message["content"]
        text, learn = tok.encode(content), int(role == "assistant" and content.strip() != "")
        ids += [tok.specials[f"<|{role}|>"], *text, tok.end]
        mask += [0, *[learn] * len(text), learn]
    if reply:
        ids, mask = ids + [tok.assistant], mask + [0]
    return ids, mask


MISTAKES = [
    ("Your mask is 1 everywhere. Learn what the assistant says, not what it reads.",
     "你的掩码处处是 1。要学的是助手说的话，不是它读到的话。",
     "return ids, mask -> return ids, [1] * len(ids)"),
    ("Your mask also counts the prompt: what user and system say is read, not learned.",
     "你的掩码把提示也算进去了：用户和系统的话只读不学。",
     'role == "assistant" and ->'),
    ("Your mask is 1 on the user's words. It is the assistant's words that are learned.",
     "你的掩码在用户的话上是 1。要学的是助手的话。", '"assistant" -> "user"'),
    ("<|end|> after the user's words is not learned: the program writes it.",
     "用户的话后面的 <|end|> 不学：它由程序写。",
     ', learn] -> , int(learn or role != "assistant")]'),
    ("Your mask leaves out <|end|> after the assistant's words: the model would never stop.",
     "助手的话后面的 <|end|> 没有算进掩码：这样模型学不会停下来。", ", learn] -> , 0]"),
    ("Your mask also counts <|assistant|>. The program writes it, so it is not learned.",
     "你的掩码把 <|assistant|> 也算进去了。它由程序写，不用学。",
     "[0, *[learn] -> [learn, *[learn]"),
    ("You learn only the last answer. In a longer dialogue every answer is learned.",
     "你只学了最后一个回答。对话里有几个回答，每个都要学。",
     "role == -> message is messages[-1] and role =="),
    ("An empty answer is read, not learned: its <|end|> would teach the model to say nothing.",
     "空的回答只读不学：学了它的 <|end|>，模型就会学着什么也不说。",
     'and content.strip() != "" ->'),
    ("Your mask stands one place too early. It marks the tokens themselves; targets are shifted "
     "later.",
     "你的掩码早了一位。它标的是词元自己；生成目标时才错开一位。",
     "return ids, mask -> return ids, mask[1:] + [0]"),
    ("<|endoftext|> is missing at the start of the dialogue.",
     "对话开头缺了 <|endoftext|>。", "[tok.eot], [0] -> [], []"),
    ("reply=True must end with <|assistant|>, with the mask 0: then the model speaks next.",
     "reply=True 时，最后要有 <|assistant|>，掩码是 0：接下来轮到模型说话。",
     "if reply -> if False"),
]
