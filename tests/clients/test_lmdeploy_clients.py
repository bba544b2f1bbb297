"""LMDeploy's own two APIClients against our server, and ours beside them: the same yields.

Each test runs three times: with `api_client` of LMDeploy 0.2.3, of 0.9.2, and of lmserve_client.
"""

from __future__ import annotations

import inspect
import io
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from lmserve_client import APIClient

from lmserve.bridge.fake import FakeEngine
from lmserve.server.lifecycle import Server
from lmserve.settings import ServerSettings

HI = [{"role": "user", "content": "hi"}]
NUM_HI = 21  # tokens of the prompt that the mock's template makes of it
KEYS = ServerSettings(server_port=0, model_name="mock", api_keys=("secret",))


def usage(num_prompt: int, num_answer: int) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def without_id(item: dict[str, Any]) -> dict[str, Any]:
    assert item["id"] and item["created"] > 0
    return {key: value for key, value in item.items() if key not in ("id", "created")}


def line(text: str, tokens: int, finish: str | None, history: int = 0) -> dict[str, Any]:
    return {
        "text": text,
        "tokens": tokens,
        "input_tokens": NUM_HI,
        "history_tokens": history,
        "finish_reason": finish,
    }


@pytest.fixture
def client(api_client: ModuleType, server: Server) -> Any:
    return api_client.APIClient(server.url)


def test_attributes(client: Any, server: Server) -> None:
    assert client.api_server_url == server.url
    assert client.chat_intractive_v1_url == f"{server.url}/v1/chat/interactive"
    assert client.chat_completions_v1_url == f"{server.url}/v1/chat/completions"
    assert client.completions_v1_url == f"{server.url}/v1/completions"
    assert client.models_v1_url == f"{server.url}/v1/models"
    assert client.encode_v1_url == f"{server.url}/v1/encode"
    assert client.api_key is None
    assert client.headers == {"content-type": "application/json"}


def test_lmdeploys_arguments_keep_their_places(api_client: ModuleType) -> None:
    """Each parameter of LMDeploy's methods is one of ours; 0.2's have our place and default."""
    theirs = api_client.APIClient
    for name in ("encode", "chat_completions_v1", "completions_v1", "chat_interactive_v1", "chat",
                 "end_session"):  # fmt: skip
        ours = inspect.signature(getattr(APIClient, name)).parameters
        asked = inspect.signature(getattr(theirs, name)).parameters
        assert asked.keys() <= ours.keys()
        if "image_url" not in inspect.signature(theirs.chat).parameters:
            assert [*asked][: len(asked) - 1] == [*ours][: len(asked) - 1]
            assert all(ours[key].default == asked[key].default for key in asked)


def test_models(api_client: ModuleType, client: Any, server: Server) -> None:
    assert client.available_models == ["mock"]
    assert client.available_models is client.available_models
    assert api_client.get_model_list(client.models_v1_url) == ["mock"]


def test_encode(client: Any) -> None:
    ids, length = client.encode("hello")
    assert length == len(ids) == 5
    ids, length = client.encode(["hello", "you"])
    assert length == [5, 3] and [len(each) for each in ids] == length
    _, length = client.encode("hi", do_preprocess=True, add_bos=False)
    assert length == NUM_HI


def test_chat_completions(client: Any, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo")
    (answer,) = client.chat_completions_v1(model="mock", messages=HI)
    message = {"role": "assistant", "content": "Hello"}
    assert without_id(answer) == {
        "object": "chat.completion",
        "model": "mock",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage(NUM_HI, 6),
    }


def test_chat_completions_streamed(client: Any, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo")
    chunks = list(client.chat_completions_v1("mock", HI, stream=True))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Hello"
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "stop"]


def test_chat_with_a_plain_string(client: Any, fake: FakeEngine) -> None:
    """It bypasses the template."""
    fake.will_say("Hello")
    (answer,) = client.chat_completions_v1("mock", "hello")
    assert answer["usage"]["prompt_tokens"] == 5


def test_completions(client: Any, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo")
    (answer,) = client.completions_v1(model="mock", prompt="hello")
    choice = {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
    assert without_id(answer) == {
        "object": "text_completion",
        "model": "mock",
        "choices": [choice],
        "usage": usage(5, 6),
    }
    (answer,) = client.completions_v1("mock", ["a", "b"], max_tokens=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}


def test_completions_streamed(client: Any, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo")
    chunks = list(client.completions_v1("mock", "hi", stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_interactive_without_a_session(client: Any, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo").will_say("Hel", "lo")
    assert list(client.chat_interactive_v1(prompt="hi")) == [line("Hello", 6, "stop")]
    assert list(client.chat_interactive_v1(HI, stream=True)) == [
        line("Hel", 3, None),
        line("lo", 5, None),
        line("", 6, "stop"),
    ]


def test_interactive_with_a_session(client: Any, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo").will_say("Hel", "lo").will_say("Hello")
    options = {"session_id": 7, "interactive_mode": True}
    (first,) = client.chat_interactive_v1("hi", **options)
    assert first == line("Hello", 6, "stop")
    *_, last = client.chat_interactive_v1("hi", **options, stream=True)
    history = last["history_tokens"]
    assert history >= NUM_HI + 5 and (last["tokens"], last["finish_reason"]) == (6, "stop")
    (ends,) = client.chat_interactive_v1("hi", session_id=7)  # and ends it
    assert ends["history_tokens"] > history
    fake.will_say("Hello")
    assert list(client.chat_interactive_v1("hi", **options)) == [line("Hello", 6, "stop")]


def test_chat_two_turns_and_its_end(client: Any, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo").will_say("aga", "in")
    assert list(client.chat("hi", 7)) == [("Hello", 6, "stop")]
    parts = list(client.chat("and?", session_id=7, stream=True))
    assert parts == [("aga", 3, None), ("in", 5, None), ("", 6, "stop")]
    assert all(isinstance(part, tuple) for part in parts)
    second = fake.submits[-1]
    assert client.end_session(7) is None
    fake.will_say("Hello")
    list(client.chat("and?", 7))
    assert len(fake.submits[-1].token_ids) < len(second.token_ids)  # it begins anew


def test_chat_needs_a_session(client: Any) -> None:
    with pytest.raises(AssertionError):
        list(client.chat("hi", -1))


@pytest.mark.parametrize("session_len", [64])
def test_a_full_session_warns(
    client: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert list(client.chat("long " * 20, 7)) == [("", 0, "length")]
    warned = capsys.readouterr().out + caplog.text
    assert "session" in warned and "max" in warned and "end" in warned


def test_a_call_alone(api_client: ModuleType, client: Any, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo")
    parts = api_client.get_streaming_response("hi", client.chat_intractive_v1_url, 7)
    assert list(parts) == [("Hel", 3, None), ("lo", 5, None), ("", 6, "stop")]


def test_cancel(api_client: ModuleType, client: Any, fake: FakeEngine) -> None:
    fake.will_hang("Hel")
    url = client.chat_intractive_v1_url
    parts = api_client.get_streaming_response("hi", url, 7, interactive_mode=True)
    assert next(parts) == ("Hel", 3, None)
    # a plain object, though a stream is asked for
    cancels = api_client.get_streaming_response("", url, 7, cancel=True)
    assert list(cancels) == [("", 0, "stop")]
    *_, (text, _, reason) = parts
    assert (text, reason) == ("", "stop")
    assert fake.aborts


def test_the_terminal(
    api_client: ModuleType,
    server: Server,
    fake: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = iter(["hi", "you", "", "end", "", "exit", ""])
    monkeypatch.setattr("builtins.input", lambda: next(typed))
    monkeypatch.setattr("sys.stdin", io.StringIO())  # LMDeploy's closes it
    fake.will_say("Hel", "lo")
    with suppress(SystemExit):
        api_client.main(server.url, session_id=3)
    asked = "\ndouble enter to end input >>> "
    assert capsys.readouterr().out == f"{asked}Hello{asked}{asked}"


@pytest.mark.parametrize("server_settings", [KEYS])
def test_keys(api_client: ModuleType, server: Server, fake: FakeEngine) -> None:
    client = api_client.APIClient(server.url, api_key="secret")
    assert client.headers["Authorization"] == "Bearer secret"
    fake.will_say("Hello").will_say("Hello").will_say("Hello")
    (answer,) = client.chat_completions_v1("mock", HI)
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert list(client.chat("hi", 7)) == [("Hello", 6, "stop")]
    assert client.encode("hello")[1] == 5
    parts = api_client.get_streaming_response(
        "hi", client.chat_intractive_v1_url, 8, api_key="secret", stream=False
    )
    assert list(parts) == [("Hello", 6, "stop")]
    # 0.2.3 forgets its key here, and takes the refusal for a list
    forgets = "headers" not in api_client.get_model_list.__code__.co_varnames
    assert client.available_models == ([] if forgets else ["mock"])


# --- the default model ---


@pytest.mark.network
@pytest.mark.timeout(300)
def test_the_page_with_the_default_model(api_client: ModuleType, default_url: str) -> None:
    """The page's three examples, a conversation, and an answer that is cancelled."""
    client = api_client.APIClient(default_url)
    model_name = client.available_models[0]
    question = "What is the capital of Japan?"  # every set of kernels is sure of it
    messages = [{"role": "user", "content": question}]
    options = {"temperature": 0, "max_tokens": 8}
    (whole,) = client.chat_completions_v1(model=model_name, messages=messages, **options)
    text = whole["choices"][0]["message"]["content"]
    assert text == "The capital of Japan is Tokyo."
    chunks = client.chat_completions_v1(model_name, messages, stream=True, **options)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == text
    (answer,) = client.completions_v1(model_name, "The capital of France is", **options)
    assert answer["choices"][0]["text"].startswith(" Paris")
    (answer,) = client.chat_interactive_v1(question, top_k=1, request_output_len=8)
    assert (answer["text"], answer["history_tokens"]) == (text, 0)
    ids, length = client.encode(question)
    assert len(ids) == length < answer["input_tokens"]

    session = 100
    *_, (_, tokens, _) = client.chat(question, session, top_k=1, stream=True)
    assert tokens == answer["tokens"]
    (second,) = client.chat_interactive_v1(
        "And of Spain?", session_id=session, interactive_mode=True, request_output_len=4, top_k=1
    )
    assert second.get("history_tokens", 0) >= answer["input_tokens"] + tokens - 1, second
    url = client.chat_intractive_v1_url
    running = api_client.get_streaming_response(
        "Tell me a story.", url, session, interactive_mode=True, ignore_eos=True
    )
    assert next(running)[1] >= 1
    list(api_client.get_streaming_response("", url, session, cancel=True))
    *_, (_, tokens, reason) = running
    assert reason == "stop" and tokens < 400
    client.end_session(session)
    (answer,) = client.chat_interactive_v1("Hi", session_id=session, request_output_len=1)
    assert answer["history_tokens"] == 0
