"""`POST /v1/chat/interactive`: LMDeploy's own chat, byte for byte.

An answer is a JSON object of five keys; a stream is one such object a line: no `data:`, no
blank line, no `[DONE]`.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

from lmserve import types
from lmserve.errors import InvalidField, LmserveError
from lmserve.protocol.openai.chat import ContentPart, Role
from lmserve.protocol.unserved import UNSERVED

NO_SESSION = -1  # what clients send for "none yet"


class PromptMessage(Struct, kw_only=True):
    """One message of a history."""

    role: Annotated[Role, Meta(description="Who speaks.")]
    content: Annotated[str | list[ContentPart], Meta(description="The text, or its parts.")]


class GenerateRequest(Struct, kw_only=True):
    """A turn of a conversation that the server may keep. `null` is the default."""

    prompt: Annotated[
        str | list[PromptMessage],
        Meta(description="What the user says; or a history, oldest message first."),
    ]
    image_url: Annotated[
        str | list[str] | None,
        Meta(description="Not served: the models here read text only.", extra={UNSERVED: ("", [])}),
    ] = None
    session_id: Annotated[
        int | None,
        Meta(
            description="The conversation, one client's choice from 0 on. -1: none, or, with "
            "`interactive_mode`, a new one, told in the header `X-Session-Id`."
        ),
    ] = NO_SESSION
    interactive_mode: Annotated[
        bool | None,
        Meta(description="Keep the conversation on the server; else it ends with this answer."),
    ] = False
    stream: Annotated[
        bool | None, Meta(description="Send the answer as it is made, one JSON object a line.")
    ] = False
    stop: Annotated[
        str | list[str] | None,
        Meta(description="Text, or texts, at which the answer ends; left out of the answer."),
    ] = None
    request_output_len: Annotated[
        int | None,
        Meta(
            description="Longest answer in tokens, cut to what fits the context. Default: what "
            "fits. 0: no answer; it adds the prompt to the conversation or, with an empty prompt "
            "and without `interactive_mode`, ends the conversation."
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Meta(description="Above 0, to 1: sample from the likeliest tokens of this total weight."),
    ] = 0.8
    top_k: Annotated[
        int | None, Meta(description="Sample from this many likeliest tokens; 0: all.")
    ] = 40
    temperature: Annotated[
        float | None, Meta(description="0 to 2. 0 always takes the likeliest token.")
    ] = 0.8
    repetition_penalty: Annotated[
        float | None,
        Meta(description="Above 0, to 2; over 1 makes tokens used before less likely. 1: off."),
    ] = 1.0
    ignore_eos: Annotated[bool | None, Meta(description="Go on past the model's end token.")] = (
        False
    )
    skip_special_tokens: Annotated[
        bool | None, Meta(description="Leave special tokens out of the text.")
    ] = True
    spaces_between_special_tokens: Annotated[
        bool | None,
        Meta(description="Accepted; the tokenizers here put no spaces there, as fast ones do."),
    ] = True
    cancel: Annotated[
        bool | None, Meta(description="Stop the running answer of `session_id`; nothing else.")
    ] = False
    adapter_name: Annotated[
        str | None, Meta(description="Not served yet.", extra={UNSERVED: ("",)})
    ] = None
    seed: Annotated[
        int | None, Meta(description="Makes sampling repeatable. Default: drawn at random.")
    ] = None
    min_new_tokens: Annotated[
        int | None, Meta(description="No end or stop before this many tokens of the answer.")
    ] = None
    min_p: Annotated[
        float | None,
        Meta(description="0 to 1: drop tokens less likely than this share of the likeliest one."),
    ] = 0.0

    def __post_init__(self) -> None:
        for name, default in _defaults().items():
            if getattr(self, name) is None:
                setattr(self, name, default)

    @property
    def ends_session(self) -> bool:
        """Nothing is said and nothing asked for: LMDeploy's way to end a conversation."""
        return self.prompt == "" and self.request_output_len == 0 and not self.interactive_mode

    @property
    def replays(self) -> bool:
        """The prompt only enters the conversation; no answer is wanted."""
        return bool(self.prompt) and self.request_output_len == 0 and bool(self.interactive_mode)

    def check(self) -> None:
        """What this route refuses and others do not; the rest is `lmserve.service.limits`."""
        if self.session_id is not None and self.session_id < NO_SESSION:
            raise InvalidField(
                f"session_id is {self.session_id}: it must be at least 0, or -1 for none",
                param="session_id",
            )
        if self.cancel and self.session_id == NO_SESSION:
            raise InvalidField(
                "cancel needs the session_id of the answer to stop", param="session_id"
            )
        if self.request_output_len is not None and self.request_output_len < 0:
            raise InvalidField(
                f"request_output_len is {self.request_output_len}: it must be at least 0; leave "
                "it out for as many as fit",
                param="request_output_len",
            )
        if self.top_k is not None and self.top_k < 0:
            raise InvalidField(
                f"top_k is {self.top_k}: it must be at least 0, which is off", param="top_k"
            )

    def messages(self) -> list[dict[str, Any]]:
        """The prompt as messages, a string as the user's."""
        if not self.prompt:
            raise InvalidField("prompt is empty: give at least one character", param="prompt")
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return [
            {"role": message.role, "content": _content(message.content, f"prompt[{i}].content")}
            for i, message in enumerate(self.prompt)
        ]

    def to_generate(self, owner: str, *, as_text: bool = False) -> types.GenerateRequest:
        """`as_text`: a string is to be gone on with as it is, not a chat's turn."""
        text = self.prompt if as_text and isinstance(self.prompt, str) else None
        return types.GenerateRequest(
            messages=self.messages() if text is None else None,
            text=text,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            max_tokens=self.request_output_len,
            min_tokens=self.min_new_tokens,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            ignore_eos=bool(self.ignore_eos),
            skip_special_tokens=bool(self.skip_special_tokens),
            params={
                "messages": "prompt",
                "max_tokens": "request_output_len",
                "min_tokens": "min_new_tokens",
            },
            owner=owner,
            session_id=None if self.session_id == NO_SESSION else self.session_id,
        )


@cache
def _defaults() -> dict[str, Any]:
    """Field name to default, of those whose default is not null."""
    none = (None, msgspec.NODEFAULT)
    fields = msgspec.structs.fields(GenerateRequest)
    return {field.name: field.default for field in fields if field.default not in none}


def _content(content: str | list[ContentPart], where: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": _text(part, f"{where}[{i}]")} for i, part in enumerate(content)
    ]


def _text(part: ContentPart, where: str) -> str:
    if part.type != "text":
        raise InvalidField(
            f"{where}.type is {part.type[:50]!r}, and this model reads text only: send parts of "
            "type 'text'",
            param=f"{where}.type",
        )
    if part.text is None:
        raise InvalidField(f"{where}.text must be a string", param=f"{where}.text")
    return part.text


class GenerateResponse(Struct, kw_only=True):
    """A whole answer or, in a stream, what a line adds to it."""

    text: Annotated[str, Meta(description="The answer; in a stream, what is new of it.")]
    tokens: Annotated[int, Meta(description="Tokens of the answer, in a stream so far.")]
    input_tokens: Annotated[int, Meta(description="Tokens this turn added to the prompt.")]
    history_tokens: Annotated[int, Meta(description="Tokens in the conversation before it.")]
    finish_reason: Annotated[
        Literal["stop", "length", "error"] | None,
        Meta(description="Null until the last line. `error`: `text` says what happened."),
    ] = None


class InteractiveEncoder:
    """One answer's objects. What they share is serialised once."""

    __slots__ = ("_counts", "_delta_tail", "_num_tokens")

    def __init__(self, input_tokens: int = 0, history_tokens: int = 0):
        self._counts = b',"input_tokens":%d,"history_tokens":%d,"finish_reason":' % (
            input_tokens,
            history_tokens,
        )
        self._delta_tail = self._counts + b"null}\n"
        self._num_tokens = 0  # shown so far

    def delta(self, delta: types.TextDelta) -> bytes:
        """A line; every delta passes here, for they are counted."""
        self._num_tokens += len(delta.token_ids)
        text = orjson.dumps(delta.text)
        return b'{"text":%b,"tokens":%d%b' % (text, self._num_tokens, self._delta_tail)

    def whole(self, text: str, num_tokens: int, reason: types.FinishReason) -> bytes:
        """An object that ends an answer. One that was cancelled has stopped."""
        shown = b"stop" if reason == "abort" else reason.encode()
        return b'{"text":%b,"tokens":%d%b"%b"}' % (
            orjson.dumps(text),
            num_tokens,
            self._counts,
            shown,
        )

    def failed(self, error: LmserveError) -> bytes:
        """The object that tells what broke an answer."""
        return self.whole(f"internal error happened: {error.message}", 0, "error")
