"""A GGUF's tokenizer as `tokenizer.json`, converted once and kept in the cache.

transformers does the conversion (imported only then: it takes seconds); what it leaves at GPT-2's
defaults is set here after `tokenizer.ggml.pre`, because splitting text differently from the way
the merges were learned gives the model ids it has never seen.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lmserve.atomic import write_atomic
from lmserve.errors import ModelError
from lmserve.weights.base import TokenizerAssets
from lmserve.weights.gguf_file import GGUFFile

log = logging.getLogger(__name__)

FORMAT = 1  # of what is cached: count up when the conversion changes
CONTROL = 3  # a token type: special, matched whole

#: control tokens that end an answer, whatever the metadata names
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
GPT2 = BYTE_LEVEL | {"use_regex": True}
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _split(digits: str) -> dict[str, Any]:
    """The split of Llama 3 and Qwen 2, which differ in how many digits stay together."""
    regex = f"{CONTRACTIONS}|{WORDS}|{digits}|{REST}"
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}


DIGITS_APART = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2],
}
LLAMA3 = _split(r"\p{N}{1,3}")
QWEN2 = _split(r"\p{N}")

PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("default", "gpt-2", "mpt", "olmo", "jais"), GPT2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), DIGITS_APART
    ),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
}
WHOLE_WORDS_FIRST = frozenset({"llama3", "llama-v3", "llama-bpe", "tekken"})
BOS_BY_DEFAULT = WHOLE_WORDS_FIRST


def gguf_assets(file: GGUFFile, cache: Path) -> TokenizerAssets:
    """From the cache, or converted now. Raises ModelError where there is no usable tokenizer."""
    folder = cache / "tokenizers" / f"{file.header_hash()[:32]}-{FORMAT}"
    cached = read_assets(folder)
    if cached is not None:
        return cached
    log.info("converting the tokenizer of %s (once)", file.path.name)
    tokens = required(file, "tokens")
    tokenizer = convert(file, tokens)
    assets = describe(file, tokens, folder / "tokenizer.json")
    try:
        write_atomic(assets.tokenizer_file, tokenizer.to_str().encode())
        fields = asdict(assets) | {"tokenizer_file": "tokenizer.json"}
        write_atomic(folder / "assets.json", json.dumps(fields).encode())  # last: the marker
    except OSError as error:
        raise ModelError(
            f"cannot keep the converted tokenizer in {folder}: {error.strerror or error}; "
            "free some space or set LMSERVE_CACHE_DIR to a directory you can write to"
        ) from error
    return assets


def read_assets(folder: Path) -> TokenizerAssets | None:
    """What an earlier start left; None where there is nothing whole."""
    try:
        fields = json.loads((folder / "assets.json").read_bytes())
        fields["tokenizer_file"] = folder / fields["tokenizer_file"]
        fields["eos_token_ids"] = tuple(fields["eos_token_ids"])
        assets = TokenizerAssets(**fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return assets if assets.tokenizer_file.is_file() else None


def required(file: GGUFFile, key: str) -> list[Any]:
    items = file.array(f"tokenizer.ggml.{key}")
    if not items:
        raise ModelError(
            f"{file.path} has no tokenizer.ggml.{key}: it was written without its tokenizer; "
            "convert the model again, or give a directory of safetensors"
        )
    return items


def convert(file: GGUFFile, tokens: list[str]) -> Tokenizer:
    def setting(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"tokenizer.ggml.{key}", default)

    pre = setting("pre", "default")
    parts = {
        "tokenizer_type": setting("model"),
        "pre_tokenizer_type": pre,
        "tokens": tokens,
        "token_type": file.array("tokenizer.ggml.token_type"),
    }
    if parts["tokenizer_type"] == "gpt2":
        parts["merges"] = required(file, "merges")
    elif file.array("tokenizer.ggml.merges"):
        parts["merges"] = file.array("tokenizer.ggml.merges")
    else:
        parts["scores"] = required(file, "scores")
    tree = json.loads(_converted(file, parts).to_str())
    tree["post_processor"] = None  # BOS is `add_bos`'s affair
    if parts["tokenizer_type"] == "gpt2":
        set_pre_tokenizer(tree, pre, file.path.name)
    elif not setting("add_space_prefix", True):
        without_space_prefix(tree)
    return Tokenizer.from_str(json.dumps(tree))


def _converted(file: GGUFFile, parts: dict[str, Any]) -> Tokenizer:
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as converters

        arch = file.metadata["general.architecture"]
        tokenizer: Tokenizer = converters.convert_gguf_tokenizer(arch, parts)[0]
    except Exception as error:  # whatever a broken vocabulary makes of the converter
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the tokenizer of {file.path} cannot be converted ({reason}); "
            "convert the model again, or give a directory of safetensors"
        ) from error
    return tokenizer


def set_pre_tokenizer(tree: dict[str, Any], pre: str, name: str) -> None:
    """Splits text the way the vocabulary's merges were learned."""
    if pre in PRE_TOKENIZERS:
        tree["pre_tokenizer"] = PRE_TOKENIZERS[pre]
    elif tree["pre_tokenizer"].get("type") == "ByteLevel":  # transformers knew none either
        log.warning(
            "%s: unknown pre-tokenizer %r, GPT-2's is used; some texts may be tokenised "
            "differently from the way the model was trained",
            name,
            pre,
        )
    if PRE_TOKENIZERS.get(pre) is QWEN2:
        tree["normalizer"] = {"type": "NFC"}
    tree["model"]["ignore_merges"] = pre in WHOLE_WORDS_FIRST


def without_space_prefix(tree: dict[str, Any]) -> None:
    """SentencePiece without the space it puts before a text, and removes on the way back."""
    if (tree["pre_tokenizer"] or {}).get("type") == "Metaspace":
        tree["pre_tokenizer"]["prepend_scheme"] = "never"
    decoder = tree["decoder"] or {}
    decoder["decoders"] = [d for d in decoder.get("decoders", ()) if d["type"] != "Strip"]


def describe(file: GGUFFile, tokens: list[str], tokenizer_file: Path) -> TokenizerAssets:
    """The strings and ids that go with the tokenizer, from the metadata."""
    metadata = file.metadata

    def token(key: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{key}")
        if index is None:
            return None
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise file.damaged(f"tokenizer.ggml.{key} is {index!r}, outside its vocabulary")
        return tokens[index]

    types = file.array("tokenizer.ggml.token_type") or []
    control = {
        text: i
        for i, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == CONTROL
    }
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ends = [metadata[f"tokenizer.ggml.{key}"] for key in keys if token(key) is not None]
    ends += [control[text] for text in END_TOKENS if text in control]
    if not ends:
        log.warning("%s names no end token: answers run to max_tokens", file.path.name)
    template = metadata.get("tokenizer.chat_template")
    spm = metadata.get("tokenizer.ggml.model") == "llama"
    by_default = spm or metadata.get("tokenizer.ggml.pre") in BOS_BY_DEFAULT
    bos = token("bos_token_id")
    return TokenizerAssets(
        tokenizer_file=tokenizer_file,
        chat_template=template if isinstance(template, str) else None,
        bos_token=bos,
        eos_token=token("eos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(ends)),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", by_default)) and bos is not None,
    )
