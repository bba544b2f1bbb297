"""The tokenizer of a directory, and what the other files beside it say about its use."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lmserve.atomic import write_atomic
from lmserve.errors import ModelError
from lmserve.weights.base import TokenizerAssets
from lmserve.weights.safetensors import read_json

log = logging.getLogger(__name__)

GENERATION_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
SOURCES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
FORMAT = 1  # of what is kept: a new number makes all of it anew


def directory_assets(path: Path, config: dict[str, Any], cache: Path) -> TokenizerAssets:
    """Reads them; converts the tokenizer where the directory has no `tokenizer.json`."""
    tokenizer_file = path / "tokenizer.json"
    if not tokenizer_file.is_file():
        tokenizer_file = converted(path, cache)
    tokenizer = load(tokenizer_file)
    settings = read_json(path / "tokenizer_config.json")
    generation = read_json(path / "generation_config.json")
    special = read_json(path / "special_tokens_map.json")
    bos = token_text(settings.get("bos_token", special.get("bos_token")))
    eos = token_text(settings.get("eos_token", special.get("eos_token")))
    ends = ids(generation.get("eos_token_id")) or ids(config.get("eos_token_id"))
    if eos is not None:
        ends += ids(tokenizer.token_to_id(eos))
    return TokenizerAssets(
        tokenizer_file=tokenizer_file,
        chat_template=chat_template(path, settings),
        bos_token=bos,
        eos_token=eos,
        eos_token_ids=tuple(dict.fromkeys(ends)),
        add_bos=bool(settings.get("add_bos_token")) and lacks_bos(tokenizer, bos),
        generation_defaults=generation_defaults(generation),
    )


def load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the bindings raise nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} is damaged ({reason}); download it again") from error


def converted(path: Path, cache: Path) -> Path:
    """`tokenizer.json` made by transformers from an older format, kept in the cache."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for name in SOURCES:
        if (path / name).is_file():
            digest.update(name.encode() + (path / name).read_bytes())
    target = cache / "tokenizers" / digest.hexdigest()[:32] / "tokenizer.json"
    if target.is_file():
        return target
    log.info("converting the tokenizer of %s (once)", path)
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        data: str = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # whatever a foreign tokenizer makes of the converter
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path} has no tokenizer.json, and its tokenizer cannot be converted ({reason}); "
            "add the model's tokenizer.json"
        ) from error
    try:
        write_atomic(target, data.encode())
    except OSError as error:
        raise ModelError(
            f"cannot keep the converted tokenizer in {target.parent}: {error.strerror or error}; "
            "free some space or set LMSERVE_CACHE_DIR to a directory you can write to"
        ) from error
    return target


def chat_template(path: Path, settings: dict[str, Any]) -> str | None:
    """A file of its own wins over tokenizer_config.json, as in transformers."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = read_json(path / "chat_template.json").get("chat_template")
    template = template or settings.get("chat_template")
    if isinstance(template, list):  # named templates
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None


def sampling_defaults(chosen: str, own: dict[str, float]) -> dict[str, float]:
    """As the setting `generation_config` chooses."""
    if chosen == "auto":
        return own
    if chosen == "lmdeploy":
        return {}
    path = Path(chosen).expanduser() / "generation_config.json"
    if not path.is_file():
        raise ModelError(
            f"--generation-config {chosen}: no generation_config.json is there; give auto, "
            "lmdeploy or the directory of one"
        )
    return generation_defaults(read_json(path))


def generation_defaults(generation: dict[str, Any]) -> dict[str, float]:
    """The model's own sampling settings; none where it says that they are not to be used."""
    if generation.get("do_sample") is False:
        return {}
    return {
        key: value
        for key in GENERATION_DEFAULTS
        if isinstance(value := generation.get(key), int | float)
    }


def token_text(value: Any) -> str | None:
    """A special token as text: it is written plain or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def ids(value: Any) -> list[int]:
    """Token ids written as one or as a list."""
    listed = value if isinstance(value, list) else [value]
    return [item for item in listed if isinstance(item, int)]


def lacks_bos(tokenizer: Tokenizer, bos: str | None) -> bool:
    """The tokenizer itself puts no BOS before a text."""
    if bos is None:
        return False
    index = tokenizer.token_to_id(bos)
    return index is not None and index not in tokenizer.encode("a").ids[:1]
