"""4. The chat mask

A dialogue becomes one row of tokens. Special tokens say who speaks, and <|end|> says that a turn is
over. In supervised fine-tuning the model reads everything, but it learns only what the assistant
says. The mask says where: it is 1 on the tokens that are to be learned.

    ids   <|endoftext|> <|user|> H i <|end|> <|assistant|> Y o <|end|>
    mask  0             0        0 0 0       0             1 1 1

<|end|> after the assistant's words is learned: this is how the model learns to stop. <|assistant|>
is not: the program writes it. A turn of the assistant without words (content.strip() is empty) is
read, but not learned. If reply is true, a last <|assistant|> asks for an answer; its mask is 0.

tok.encode(text) gives the ids of a text. The special tokens are tok.eot (<|endoftext|>), tok.end,
tok.assistant, and tok.specials["<|user|>"] for any name. A text that contains the characters
"<|end|>" gives ordinary ids, never the special one.
"""


def encode_chat(tok, messages, reply=False):
    """messages: [{"role": "system", "user" or "assistant", "content": text}].
    -> ids and mask, two lists of int of the same length"""
    raise NotImplementedError
