"""What each verb sends, and what it makes of what comes back; shared by both clients.

The signatures are those of LMDeploy 0.2.3, so that positional arguments keep their places; what
0.9 added is keyword-only, and sent only when given. Further keywords go into the request as they
are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Generic, TypeVar, cast

from lmserve_client.errors import APIResponseError
from lmserve_client.types import (
    ChatCompletion,
    ChatPart,
    Completion,
    Encoding,
    EncodingBatch,
    InteractiveAnswer,
    JSONObject,
    Message,
    Messages,
    Stop,
)

T = TypeVar("T")

_logger = logging.getLogger("lmserve_client")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call, before it is sent."""

    url: str  # the client's attribute that holds it: programs set those
    payload: JSONObject | None  # None: a GET
    read: Callable[[JSONObject], T]
    stream: bool = False


def available_models() -> Call[list[str]]:
    return Call("models_v1_url", None, model_ids)


def encode(
    input: str | Sequence[str], do_preprocess: bool = False, add_bos: bool = True
) -> Call[Encoding | EncodingBatch]:
    """The text, or texts, in the model's tokens. `do_preprocess`: through the chat template."""
    texts = input if isinstance(input, str) else list(input)
    payload = {"input": texts, "do_preprocess": do_preprocess, "add_bos": add_bos}
    return Call("encode_v1_url", payload, _encoding)


def chat_completions_v1(
    model: str,
    messages: Messages,
    temperature: float | None = 0.7,
    top_p: float | None = 1.0,
    n: int | None = 1,
    max_tokens: int | None = 512,
    stop: Stop = None,
    stream: bool | None = False,
    presence_penalty: float | None = 0.0,
    frequency_penalty: float | None = 0.0,
    user: str | None = None,
    repetition_penalty: float | None = 1.0,
    session_id: int | None = -1,
    ignore_eos: bool | None = False,
    skip_special_tokens: bool | None = True,
    *,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    spaces_between_special_tokens: bool | None = None,
    top_k: int | None = None,
    min_new_tokens: int | None = None,
    min_p: float | None = None,
    logit_bias: Mapping[str, float] | None = None,
    stream_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Call[ChatCompletion]:
    """Answers a conversation. Yields one dict, or, with `stream`, one a chunk. A plain string as
    `messages` bypasses the chat template."""
    payload: JSONObject = {
        "model": model,
        "messages": messages if isinstance(messages, str) else list(messages),
        "temperature": temperature,
        "top_p": top_p,
        "n": n,
        "max_tokens": max_tokens,
        "stop": stop,
        "stream": stream,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "user": user,
        "repetition_penalty": repetition_penalty,
        "session_id": session_id,
        "ignore_eos": ignore_eos,
        "skip_special_tokens": skip_special_tokens,
        **_given(
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            spaces_between_special_tokens=spaces_between_special_tokens,
            top_k=top_k,
            min_new_tokens=min_new_tokens,
            min_p=min_p,
            logit_bias=logit_bias,
            stream_options=stream_options,
        ),
        **kwargs,
    }
    return Call("chat_completions_v1_url", payload, _chat_completion, bool(stream))


def completions_v1(
    model: str,
    prompt: str | Sequence[Any],
    suffix: str | None = None,
    temperature: float | None = 0.7,
    n: int | None = 1,
    max_tokens: int | None = 16,
    stream: bool | None = False,
    stop: Stop = None,
    top_p: float | None = 1.0,
    top_k: int | None = 40,
    user: str | None = None,
    repetition_penalty: float | None = 1.0,
    session_id: int | None = -1,
    ignore_eos: bool | None = False,
    skip_special_tokens: bool | None = True,
    *,
    spaces_between_special_tokens: bool | None = None,
    stream_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Call[Completion]:
    """Goes on with a text. Yields one dict, or, with `stream`, one a chunk."""
    payload: JSONObject = {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "suffix": suffix,
        "temperature": temperature,
        "n": n,
        "max_tokens": max_tokens,
        "stream": stream,
        "stop": stop,
        "top_p": top_p,
        "top_k": top_k,
        "user": user,
        "repetition_penalty": repetition_penalty,
        "session_id": session_id,
        "ignore_eos": ignore_eos,
        "skip_special_tokens": skip_special_tokens,
        **_given(
            spaces_between_special_tokens=spaces_between_special_tokens,
            stream_options=stream_options,
        ),
        **kwargs,
    }
    return Call("completions_v1_url", payload, _completion, bool(stream))


def chat_interactive_v1(
    prompt: Messages,
    session_id: int = -1,
    interactive_mode: bool = False,
    stream: bool = False,
    stop: Stop = None,
    request_output_len: int | None = 512,
    top_p: float = 0.8,
    top_k: int = 40,
    temperature: float = 0.8,
    repetition_penalty: float = 1.0,
    ignore_eos: bool = False,
    skip_special_tokens: bool | None = True,
    *,
    image_url: str | Sequence[str] | None = None,
    adapter_name: str | None = None,
    **kwargs: Any,
) -> Call[InteractiveAnswer]:
    """Answers a prompt; with `interactive_mode` and a `session_id`, after what the session holds,
    and the server keeps both. `request_output_len` None: as many tokens as fit. Yields one dict,
    or, with `stream`, one a line."""
    payload: JSONObject = {
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "session_id": session_id,
        "interactive_mode": interactive_mode,
        "stream": stream,
        "stop": stop,
        "request_output_len": request_output_len,
        "top_p": top_p,
        "top_k": top_k,
        "temperature": temperature,
        "repetition_penalty": repetition_penalty,
        "ignore_eos": ignore_eos,
        "skip_special_tokens": skip_special_tokens,
        **_given(image_url=image_url, adapter_name=adapter_name),
        **kwargs,
    }
    return Call("chat_intractive_v1_url", payload, _interactive_answer, stream)


def chat(
    prompt: str | Sequence[Message],
    session_id: int,
    request_output_len: int | None = 512,
    stream: bool = False,
    top_p: float = 0.8,
    top_k: int = 40,
    temperature: float = 0.8,
    repetition_penalty: float = 1.0,
    ignore_eos: bool = False,
    *,
    image_url: str | Sequence[str] | None = None,
) -> Call[ChatPart]:
    """The next turn of a session that the server keeps. Yields tuples `(text, tokens,
    finish_reason)`: one, or, with `stream`, one a line. Warns when the session is full."""
    _assert_session(session_id)
    call = chat_interactive_v1(
        prompt,
        session_id=session_id,
        image_url=image_url,
        request_output_len=request_output_len,
        interactive_mode=True,
        stream=stream,
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        ignore_eos=ignore_eos,
    )
    return Call(call.url, call.payload, _chat_part, stream)


def cancel(session_id: int) -> Call[InteractiveAnswer]:
    """Stops the session's running answer; the session stays."""
    _assert_session(session_id)
    return chat_interactive_v1("", session_id=session_id, cancel=True)


def end_session(session_id: int) -> Call[None]:
    """Makes the server forget the session."""
    call = chat_interactive_v1("", session_id, request_output_len=0, interactive_mode=False)
    return Call(call.url, call.payload, lambda item: None)


def streaming_response(payload: JSONObject) -> Call[ChatPart]:
    """Of the module function of that name."""
    return Call("chat_intractive_v1_url", payload, _chat_part, bool(payload["stream"]))


def model_ids(item: Mapping[str, Any]) -> list[str]:
    return _read(item, lambda: [model["id"] for model in item["data"]])


def _given(**fields: Any) -> JSONObject:
    return {name: value for name, value in fields.items() if value is not None}


def _assert_session(session_id: int) -> None:
    if session_id == -1:  # an assertion in LMDeploy, so that programs may expect one
        raise AssertionError("please set a session_id other than -1")


def _chat_completion(item: JSONObject) -> ChatCompletion:
    return cast("ChatCompletion", item)


def _completion(item: JSONObject) -> Completion:
    return cast("Completion", item)


def _interactive_answer(item: JSONObject) -> InteractiveAnswer:
    return cast("InteractiveAnswer", item)


def _encoding(item: JSONObject) -> Encoding | EncodingBatch:
    input_ids, length = _read(item, lambda: (item["input_ids"], item["length"]))
    many = isinstance(length, list)
    return EncodingBatch(input_ids, length) if many else Encoding(input_ids, length)


def _chat_part(item: JSONObject) -> ChatPart:
    part = _read(item, lambda: ChatPart(item["text"], item["tokens"], item["finish_reason"]))
    if part.finish_reason == "length" and part.tokens == 0:
        _logger.warning("the session is at its maximum length: end it with end_session")
    return part


def _read(item: Mapping[str, Any], read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, TypeError):
        raise APIResponseError(f"the server answered without what was asked: {item!r}") from None
