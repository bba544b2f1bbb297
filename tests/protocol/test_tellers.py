"""A stream put together says what the whole answer says, however it was cut."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from hypothesis import given
from hypothesis import strategies as st

from lmserve.messages import TokenLogprob
from lmserve.protocol.encode import Head
from lmserve.protocol.openai.chat_answers import (
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
)
from lmserve.protocol.openai.chat_teller import ChatTeller
from lmserve.protocol.openai.completion_answers import CompletionResponse, CompletionStreamResponse
from lmserve.protocol.openai.completion_teller import CompletionTeller
from lmserve.protocol.openai.plain import Extras
from lmserve.protocol.usage import UsageInfo
from lmserve.types import (
    CallArguments,
    CallBegun,
    Content,
    Done,
    Part,
    PromptProgress,
    Reasoning,
    TextDelta,
    Usage,
)
from tests.protocol.told import Bytes, Told

HEAD = Head("id", 7, "m")
USAGE = Usage(2, 4, 1, 1)
PARTS: list[Part] = [
    Reasoning("Hm"),
    Reasoning("m."),
    Content("Let "),
    Content("me."),
    CallBegun(0, "call_a", "f"),
    CallArguments(0, '{"x"'),
    CallArguments(0, ":1}"),
    CallBegun(1, "call_b", "g"),
    CallArguments(1, "{}"),
]
extras = st.builds(
    Extras,
    include_usage=st.booleans(),
    usage_so_far=st.booleans(),
    logprobs=st.booleans(),
    prompt_logprobs=st.booleans(),
    token_ids=st.booleans(),
    timings=st.booleans(),
    progress=st.booleans(),
    interval=st.integers(1, 5),
    echo=st.booleans(),
)
cuts = st.lists(st.integers(1, 3), max_size=len(PARTS))


def logprob(id: int) -> TokenLogprob:
    return TokenLogprob(id, -0.5, [id], [-0.5])


def source() -> Told:
    return Told(
        usage=USAGE,
        prompt_logprobs=[logprob(105)],
        unshown_ids=[65],
        end_id=300,
        end_logprob=logprob(300),
    )


def deltas(cut: list[int]) -> list[TextDelta]:
    """The parts in runs of these lengths, a token each; the rest in one."""
    made, start = [], 0
    for length in [*cut, len(PARTS)]:
        parts = PARTS[start : start + length]
        ids = list(range(97 + start, 97 + start + len(parts)))
        start += length
        if parts:
            made.append(TextDelta("raw", ids, parts, [logprob(id) for id in ids]))
    return made


def events(stream: bytes, kind: type[Any]) -> list[dict[str, Any]]:
    """Each fits its type, whole."""
    found = []
    for data in stream.removesuffix(b"\n\n").split(b"\n\n"):
        raw = orjson.loads(data.removeprefix(b"data: "))
        msgspec.convert(raw, kind, strict=True)
        found.append(raw)
    return found


def put_together(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """As a client does."""
    message: dict[str, Any] = {"role": None, "content": ""}
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None}
    answer: dict[str, Any] = {"choices": [choice]}
    for chunk in chunks:
        for name in ("prompt_token_ids", "prompt_logprobs", "timings"):
            if name in chunk:
                assert name not in answer
                answer[name] = chunk[name]
        (told,) = chunk["choices"]
        delta = told["delta"]
        message["role"] = delta.get("role") or message["role"]
        for name in ("content", "reasoning_content"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for call in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                calls.append({"id": call["id"], "type": call["type"], "function": call["function"]})
            else:
                assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        if told["logprobs"] is not None:
            so_far = choice["logprobs"] or {"content": [], "refusal": None}
            so_far["content"] += told["logprobs"]["content"]
            choice["logprobs"] = so_far
        if "token_ids" in told:
            choice.setdefault("token_ids", []).extend(told["token_ids"])
        choice["finish_reason"] = told["finish_reason"]
    return answer


@given(extras, cuts)
def test_a_chat(asked: Extras, cut: list[int]) -> None:
    done = Done("tool_calls", USAGE)
    streamed = ChatTeller(HEAD, 0, source(), asked, Bytes())
    stream = b"".join([*map(streamed.delta, deltas(cut)), streamed.final(done)])
    chunks = events(stream, ChatCompletionStreamResponse)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    usages = [chunk.get("usage", "none") for chunk in chunks]
    known = msgspec.to_builtins(UsageInfo.of(USAGE))
    silent = None if asked.include_usage else "none"
    assert usages == [known if asked.usage_so_far else silent] * len(chunks)

    whole = ChatTeller(HEAD, 0, source(), asked, Bytes())
    for delta in deltas([]):
        whole.add(delta)
    body = whole.response([whole.choice(done)], UsageInfo.of(USAGE))
    answer = orjson.loads(body)
    msgspec.convert(answer, ChatCompletionResponse, strict=True)
    for name in ("id", "object", "created", "model", "usage"):
        del answer[name]
    assert put_together(chunks) == answer
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Let me.", "Hmm.")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"x":1}'},
        {"name": "g", "arguments": "{}"},
    ]


@given(extras, cuts)
def test_a_completion(asked: Extras, cut: list[int]) -> None:
    done = Done("length", USAGE)

    def teller() -> CompletionTeller:
        return CompletionTeller(HEAD, 3, source(), asked, Bytes(), prompt="hi")

    texts = [TextDelta(f"{i} ", d.token_ids, None, d.logprobs) for i, d in enumerate(deltas(cut))]
    streamed, whole = teller(), teller()
    stream = b"".join([*map(streamed.delta, texts), streamed.final(done)])
    chunks = [e["choices"][0] for e in events(stream, CompletionStreamResponse)]
    for text in texts:
        whole.add(text)
    answer = orjson.loads(whole.response([whole.choice(done)], UsageInfo.of(USAGE)))
    msgspec.convert(answer, CompletionResponse, strict=True)
    (choice,) = answer["choices"]
    assert {chunk["index"] for chunk in chunks} == {3}
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    assert choice["text"].startswith("hi0" if asked.echo else "0")
    for name in ("prompt_token_ids", "prompt_logprobs"):
        assert [chunk[name] for chunk in chunks if name in chunk] == (
            [choice[name]] if name in choice else []
        )
    ids = [id for chunk in chunks for id in chunk.get("token_ids", [])]
    assert ids == choice.get("token_ids", [])
    if asked.logprobs:
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            lists = [chunk["logprobs"][name] for chunk in chunks if chunk["logprobs"]]
            assert [item for items in lists for item in items] == choice["logprobs"][name]
        assert len(choice["logprobs"]["tokens"]) == len(PARTS) + 1 + 2 * asked.echo


def test_calls_alone_leave_no_content() -> None:
    teller = ChatTeller(HEAD, 0, Told(), Extras(), Bytes())
    teller.add(TextDelta("raw", [1], [CallBegun(0, "call_a", "f"), CallArguments(0, "{}")]))
    answer = orjson.loads(msgspec.json.encode(teller.choice(Done("tool_calls", USAGE))))
    assert answer["message"]["content"] is None
    teller = ChatTeller(HEAD, 0, Told(), Extras(), Bytes())
    answer = orjson.loads(msgspec.json.encode(teller.choice(Done("stop", USAGE))))
    assert answer["message"] == {"role": "assistant", "content": ""}


def test_an_interval() -> None:
    """The first chunk comes at once, the next when there is enough, the rest at the end."""
    teller = ChatTeller(HEAD, 0, Told(), Extras(interval=3), Bytes())
    told = [bool(teller.delta(TextDelta("a", [97]))) for _ in range(6)]
    assert told == [True, False, False, True, False, False]
    chunks = events(teller.final(Done("stop", USAGE)), ChatCompletionStreamResponse)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"content": "aa"}, {}]


def test_progress() -> None:
    """As llama-server has it, before the first chunk and without a role."""
    teller = ChatTeller(HEAD, 1, Told(), Extras(progress=True), Bytes())
    delta = TextDelta("", [], progress=PromptProgress(9, 2, 6, 0.0205))
    (chunk,) = events(teller.delta(delta), ChatCompletionStreamResponse)
    assert chunk["prompt_progress"] == {"total": 9, "cache": 2, "processed": 6, "time_ms": 20}
    assert chunk["choices"][0]["delta"] == {}
    (first, *_) = events(teller.final(Done("stop", USAGE)), ChatCompletionStreamResponse)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_timings() -> None:
    teller = ChatTeller(HEAD, 0, Told(usage=USAGE), Extras(timings=True), Bytes())
    (_, last) = events(teller.final(Done("stop", USAGE)), ChatCompletionStreamResponse)
    assert last["timings"] == {
        "queue_ms": 500.0,
        "cache_n": 1,
        "prompt_n": 4,
        "prompt_ms": 2000.0,
        "prompt_per_token_ms": 500.0,
        "prompt_per_second": 2.0,
        "predicted_n": 3,
        "predicted_ms": 1000.0,
        "predicted_per_token_ms": 500.0,
        "predicted_per_second": 2.0,
    }
