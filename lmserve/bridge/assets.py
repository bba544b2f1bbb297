"""A model's text assets without a model: a tokenizer whose first 256 ids are the bytes, three
marks, and some hundred words that only an engine says; and a ChatML-like template."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
EOS_ID = 257  # <|im_end|>
FIRST_WORD_ID = 259

_WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city community name president team minute idea body information back "
    "parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education the of and a to in is "
    "you that it he was for on are as with his they I at be this have from or one had by but not "
    "what all were we when your can said there use an each which she do how their if will up "
    "other about out many then them these so some her would make like him into has look two more "
    "write go see no could than first been call who its now find long down did get come made may"
).split()
WORDS = tuple(f" {word}" for word in dict.fromkeys(_WORDS))
VOCAB_SIZE = FIRST_WORD_ID + len(WORDS)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_characters() -> list[str]:
    """The visible character that byte-level tokenizers write for each byte: itself where it is
    visible, else the next one from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in visible else next(stand_ins)) for byte in range(256)]


def byte_tokenizer() -> Tokenizer:
    characters = _byte_characters()
    vocab = {character: byte for byte, character in enumerate(characters)}
    marks = (IM_START, IM_END, END_OF_TEXT)
    vocab |= {mark: 256 + i for i, mark in enumerate(marks)}
    space = characters[ord(" ")]
    vocab |= {word.replace(" ", space): FIRST_WORD_ID + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return tokenizer


def write_assets(folder: Path) -> Path:
    """Writes `tokenizer.json` into `folder` and returns its path."""
    path = folder / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return path
