"""Which chat template: a name, a file, or the model's own; and what is told the model first."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

from lmserve.errors import ModelError, RequestError, SettingsError
from lmserve.text.named_templates import NAMED, Capability, Turns, jinja_source, literal, named
from lmserve.text.template import ChatTemplate, syntax_fault
from lmserve.text.tokenizer import Tokenizer

OWN = "hf"  # the name of the model's own template
MAX_FILE_BYTES = 2**20
CAPABILITIES = get_args(Capability)
JSON_KEYS = {field.name for field in fields(Turns)} - {"start", "opens"} | {"model_name"}


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    source: str | None = None  # Jinja; None: the model's own
    turns: bool = False  # made from `Turns`: `bos_token` is for tokenizers that add a BOS only
    stop_words: tuple[str, ...] = ()  # these end every answer of a chat
    capability: Capability | None = None  # the `cap` that comes with it


@cache  # a file is read once, at the start, however often the engine starts again
def resolve_chat_template(spec: str | None) -> TemplateChoice:
    """What `--chat-template` names. Reads a file. Raises SettingsError: one line."""
    if spec is None or spec == OWN:
        return TemplateChoice()
    turns = named(spec)
    if turns is not None:
        return _from_turns(turns)
    path = Path(spec).expanduser()
    if path.suffix == ".json":
        return _from_turns(_turns_of(_parse(path), spec))
    if path.suffix in (".jinja", ".jinja2", ".j2"):
        return TemplateChoice(source=_checked(_read(path), path))
    raise SettingsError(
        f"--chat-template {spec}: no template has this name; give a file (.jinja, or LMDeploy's "
        f".json) or one of {', '.join([OWN, *NAMED])}"
    )


def template_source(
    choice: TemplateChoice, own: str | None, tokenizer: Tokenizer, meta_instruction: str | None
) -> str | None:
    """The Jinja of this choice for a model whose own template is `own`. None: there is none.

    Raises ModelError where the model's template takes no such system message."""
    source = own if choice.source is None else choice.source
    if choice.turns and not tokenizer.adds_bos:
        source = f"{{% set bos_token = '' %}}{source}"
    if meta_instruction is None:
        return source
    if source is None:
        raise ModelError(
            "--meta-instruction: this model has no chat template; give --chat-template as well"
        )
    shaped = with_meta_instruction(source, meta_instruction)
    try:
        ChatTemplate(shaped).render([{"role": "user", "content": "hello"}])
    except RequestError as error:
        raise ModelError(
            f"--meta-instruction: {error.message}; leave it out, or give another --chat-template"
        ) from None
    return shaped


def split_stops(
    choice: TemplateChoice, tokenizer: Tokenizer
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The stop words that are text, and the token ids of those that are special tokens: these
    are not in the text."""
    words: list[str] = []
    ids: list[int] = []
    for word in choice.stop_words:
        encoded = tokenizer.encode(word, add_special=False)
        if len(encoded) == 1 and encoded[0] in tokenizer.special_ids:
            ids += encoded
        else:
            words.append(word)
    return tuple(words), tuple(id for id in ids if id not in tokenizer.eos_token_ids)


def with_meta_instruction(source: str, text: str) -> str:
    """The template, with a system message of this text put before conversations without one."""
    roles = "['system', 'developer']" if "developer" in source else "['system']"
    message = f"{{'role': 'system', 'content': {literal(text)}}}"
    return (
        f"{{% if not messages or messages[0].role not in {roles} %}}"
        f"{{% set messages = [{message}] + messages %}}{{% endif %}}{source}"
    )


def _from_turns(turns: Turns) -> TemplateChoice:
    return TemplateChoice(jinja_source(turns), True, turns.stop_words, turns.capability)


def _turns_of(given: dict[str, Any], spec: str) -> Turns:
    """LMDeploy's JSON: the fields of the template `model_name`, each where given replaced."""
    if unknown := sorted(given.keys() - JSON_KEYS):
        raise SettingsError(
            f"--chat-template {spec}: {', '.join(unknown)[:200]} is unknown; the keys are "
            f"{', '.join(sorted(JSON_KEYS))}"
        )
    values = {key: value for key, value in given.items() if value is not None}
    for key, value in values.items():
        _check(key, value, spec)
    base = named(values.pop("model_name", "")) or Turns()  # an own name begins with nothing
    if "assistant" in values:
        base = replace(base, opens=None)
    values["stop_words"] = tuple(values.get("stop_words", base.stop_words))
    return replace(base, **values)


def _check(key: str, value: Any, spec: str) -> None:
    texts = value if key == "stop_words" else [value]
    if not isinstance(texts, list) or not all(_is_text(text) for text in texts):
        kind = "a list of texts" if key == "stop_words" else "a text"
        raise SettingsError(f"--chat-template {spec}: {key} must be {kind}")
    if key == "stop_words" and not all(texts):
        raise SettingsError(f"--chat-template {spec}: stop_words has an empty text; leave it out")
    if key == "capability" and value not in CAPABILITIES:
        raise SettingsError(
            f"--chat-template {spec}: capability {value} is not supported; give one of "
            f"{', '.join(CAPABILITIES)}"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _parse(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--chat-template {path}: not JSON: {error}") from None
    if not isinstance(given, dict):
        raise SettingsError(f"--chat-template {path}: it must hold one JSON object")
    return given


def _checked(source: str, path: Path) -> str:
    if fault := syntax_fault(source):
        raise SettingsError(f"--chat-template {path}: not a Jinja template: {fault}")
    return source


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES or not path.is_file():  # a pipe would never end
            raise SettingsError(f"--chat-template {path}: not a file of at most 1 MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"--chat-template {path}: cannot read it: {error.strerror or error}"
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"--chat-template {path}: it is not UTF-8 text") from None
