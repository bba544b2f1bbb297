"""The plain client: what it adds to LMDeploy's, against our server and against scripted ones."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lmserve_client import (
    APIClient,
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APIStreamError,
    APITimeoutError,
    AsyncAPIClient,
    api_client,
)

from lmserve.bridge.fake import FakeEngine
from lmserve.cli.loop import LoopThread
from lmserve.server.lifecycle import Server
from lmserve.settings import ServerSettings

HI = [{"role": "user", "content": "hi"}]
ANSWER = b'{"text":"hi","tokens":1,"finish_reason":"stop"}'


def wait_for(loop: LoopThread, condition: Callable[[], bool]) -> None:
    """Turns the server's loop until the condition holds; the test's timeout is the bound."""
    while not loop.call(asyncio.sleep(0, condition())):
        pass


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited."""
    waited: list[float] = []
    monkeypatch.setattr("lmserve_client.api_client.time.sleep", waited.append)
    return waited


@pytest.mark.parametrize(
    "start",
    [
        lambda client: client.chat_completions_v1("nope", HI),
        lambda client: client.chat_completions_v1("nope", HI, stream=True),
        lambda client: client.completions_v1("nope", "hi", stream=True),
    ],
)
def test_a_refusal_is_an_error_with_its_reason(server: Server, start: Any) -> None:
    with APIClient(server.url) as client, pytest.raises(APIStatusError) as caught:
        next(start(client))
    error = caught.value
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")
    assert "nope" in error.message


@pytest.mark.parametrize("status", [500, 502])
def test_a_refusal_that_is_no_json(scripted: Any, status: int) -> None:
    scripted.will_answer(b"<html>oops", f"{status} Oops")
    with APIClient(scripted.url) as client, pytest.raises(APIStatusError, match="oops") as caught:
        list(client.chat_interactive_v1("hi"))
    assert caught.value.status == status


def test_a_refusal_with_status_200(scripted: Any) -> None:
    """LMDeploy 0.2's."""
    scripted.will_answer(b'{"object":"error","message":"no such model","code":404}')
    with APIClient(scripted.url) as client, pytest.raises(APIStatusError) as caught:
        list(client.completions_v1("nope", "hi"))
    assert (caught.value.status, caught.value.message) == (404, "no such model")


def test_a_failure_within_a_stream_is_an_error(server: Server, fake: FakeEngine) -> None:
    fake.will_fail("out of luck", "Hel")
    with APIClient(server.url) as client:
        texts = []
        with pytest.raises(APIStreamError, match="out of luck"):
            for chunk in client.chat_completions_v1("mock", HI, stream=True):
                texts.append(chunk["choices"][0]["delta"].get("content"))  # noqa: PERF401
        assert "".join(texts) == "Hel"


def test_an_answer_that_breaks_off_is_an_error(scripted: Any) -> None:
    scripted.will_answer(ANSWER + b"\n", length=500)
    with APIClient(scripted.url) as client:
        lines = client.chat_interactive_v1("hi", stream=True)
        assert next(lines)["text"] == "hi"
        with pytest.raises(APIConnectionError, match="broke"):
            next(lines)


@pytest.mark.parametrize(
    ("body", "start"),
    [
        (b"<html>", lambda client: list(client.chat_interactive_v1("hi"))),
        (b"<html>", lambda client: list(client.chat_interactive_v1("hi", stream=True))),
        (b"{}", lambda client: client.available_models),
        (b'{"data":[3]}', lambda client: client.available_models),
        (b'{"input_ids":[1]}', lambda client: client.encode("hi")),
        (b'{"text":"hi"}', lambda client: list(client.chat("hi", 1))),
    ],
)
def test_what_is_not_this_api_is_told(scripted: Any, body: bytes, start: Any) -> None:
    scripted.will_answer(body)
    with APIClient(scripted.url) as client, pytest.raises(APIResponseError, match="answered"):
        start(client)


# --- time and retries ---


def test_silence_between_bytes_has_a_limit(
    loop: LoopThread, server: Server, fake: FakeEngine
) -> None:
    fake.will_hang("Hel")
    with APIClient(server.url, read_timeout_s=0.3) as client:
        chunks = client.chat_completions_v1("mock", HI, stream=True)
        assert next(chunks)["choices"][0]["delta"]["role"] == "assistant"
        with pytest.raises(APITimeoutError):
            list(chunks)
    wait_for(loop, lambda: bool(fake.aborts))


def test_a_connection_has_a_limit() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = socket.socket()
        waiting.connect(address)  # the one that may wait to be accepted: the next gets no answer
        url = f"http://127.0.0.1:{address[1]}"
        with waiting, APIClient(url, connect_timeout_s=0.2, max_retries=0) as client:
            with pytest.raises(APITimeoutError, match="ConnectTimeout"):
                client.available_models  # noqa: B018


def test_no_connection_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent: a server that starts meanwhile is found."""
    waited: list[float] = []
    threads: list[threading.Thread] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b'{"data":[]}'
                )

        def sleep(delay_s: float) -> None:
            waited.append(delay_s)
            if len(waited) == 2:
                listener.listen()
                threads.append(threading.Thread(target=answer))
                threads[0].start()

        monkeypatch.setattr("lmserve_client.api_client.time.sleep", sleep)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with APIClient(url) as client:
            assert client.available_models == []
        threads[0].join()
    assert waited == [0.25, 0.5]


def test_no_connection_ends_in_an_error(sleeps: list[float]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with APIClient(url, max_retries=1) as client, pytest.raises(APIConnectionError):
            list(client.chat_interactive_v1("hi"))
    assert sleeps == [0.25]


def test_what_was_sent_is_not_sent_again(scripted: Any, sleeps: list[float]) -> None:
    with APIClient(scripted.url) as client, pytest.raises(APIConnectionError):
        list(client.chat_interactive_v1("hi"))  # the connection is closed without an answer
    assert len(scripted.requests) == 1 and sleeps == []


def test_an_overloaded_server_is_obeyed_when_asked_to(scripted: Any, sleeps: list[float]) -> None:
    scripted.will_answer(b"{}", "429 Too Many", "Retry-After: 2").will_answer(ANSWER)
    with APIClient(scripted.url, max_retry_after_s=5) as client:
        assert list(client.chat_interactive_v1("hi", stream=True)) == [json.loads(ANSWER)]
    assert sleeps == [2.0] and len(scripted.requests) == 2


@pytest.mark.parametrize(
    ("options", "status", "headers"),
    [
        ({}, "429 Too Many", ["Retry-After: 1"]),
        ({"max_retry_after_s": 5}, "503 Loading", ["Retry-After: 6"]),
        ({"max_retry_after_s": 5}, "503 Loading", []),
        ({"max_retry_after_s": 5}, "500 Oops", ["Retry-After: 1"]),
        ({"max_retry_after_s": 5, "max_retries": 0}, "429 Too Many", ["Retry-After: 1"]),
    ],
)
def test_an_overloaded_server_is_told_otherwise(
    scripted: Any, sleeps: list[float], options: Any, status: str, headers: list[str]
) -> None:
    scripted.will_answer(b"{}", status, *headers)
    with APIClient(scripted.url, **options) as client, pytest.raises(APIStatusError):
        client.available_models  # noqa: B018
    assert sleeps == []


# --- lifetimes ---


def test_leaving_the_loop_ends_the_answer(
    loop: LoopThread, server: Server, fake: FakeEngine
) -> None:
    fake.will_hang("Hel")
    with APIClient(server.url) as client:
        for _ in client.chat_completions_v1("mock", HI, stream=True):
            break
        wait_for(loop, lambda: bool(fake.aborts))


def test_a_client_that_nobody_closes_leaks_nothing(server: Server, fake: FakeEngine) -> None:
    """A ResourceWarning would fail this test."""
    client = APIClient(server.url)
    assert client.available_models == ["mock"]
    del client
    gc.collect()


def test_many_threads_share_a_client(server: Server, fake: FakeEngine) -> None:
    with APIClient(server.url) as client, ThreadPoolExecutor(16) as pool:

        def ask(n: int) -> str | None:
            (answer,) = client.completions_v1("mock", f"story {n}", max_tokens=n)
            return answer["usage"]["completion_tokens"]

        assert list(pool.map(ask, range(1, 65))) == list(range(1, 65))


# --- requests ---


def sent(scripted: Any) -> dict[str, Any]:
    return json.loads(scripted.requests[-1].partition(b"\r\n\r\n")[2])


def test_what_is_given_is_sent(scripted: Any) -> None:
    with APIClient(scripted.url + "/", "secret") as client:
        scripted.will_answer(b"{}")
        list(client.chat_completions_v1("m", HI, top_k=3, seed=7, max_tokens=None))
        head = scripted.requests[-1].lower()
        assert head.startswith(b"post /v1/chat/completions http/1.1\r\n")
        assert b"authorization: bearer secret" in head
        body = sent(scripted)
        assert (body["top_k"], body["seed"], body["max_tokens"]) == (3, 7, None)
        assert "kwargs" not in body and "min_p" not in body and "self" not in body
        client.headers["X-Trace"] = "7"
        client.completions_v1_url = f"{scripted.url}/elsewhere"
        scripted.will_answer(b"{}")
        list(client.completions_v1("m", ("a", "b"), stream_options={"include_usage": True}))
        head = scripted.requests[-1].lower()
        assert head.startswith(b"post /elsewhere ") and b"x-trace: 7" in head
        assert sent(scripted)["prompt"] == ["a", "b"]
        scripted.will_answer(ANSWER)
        assert client.cancel(5) == json.loads(ANSWER)
        assert (sent(scripted)["session_id"], sent(scripted)["cancel"]) == (5, True)
        with pytest.raises(AssertionError):
            client.cancel(-1)


def test_unknown_options_are_ignored_as_lmdeploy_does_and_told() -> None:
    with pytest.warns(UserWarning, match="APIClient ignores read_timeout$"):
        APIClient("http://127.0.0.1:1", read_timeout=3)


@pytest.mark.parametrize("kind", [APIClient, AsyncAPIClient])
def test_verbs_show_what_they_take(kind: type) -> None:
    shown = inspect.signature(kind.chat)
    assert list(shown.parameters)[:4] == ["self", "prompt", "session_id", "request_output_len"]
    assert kind.chat.__doc__ and kind.chat.__qualname__ == f"{kind.__name__}.chat"
    with pytest.raises(TypeError, match="session_id"):
        kind("http://127.0.0.1:1").chat("hi")


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's, which nobody vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -nodes"
    make += f" -subj /CN=lmserve -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(make.split(), check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERTFILE", str(cert))
    monkeypatch.setenv("SSL_KEYFILE", str(key))
    return cert


@pytest.mark.parametrize(
    "server_settings", [ServerSettings(server_port=0, model_name="mock", ssl=True)]
)
def test_https(certificate: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERTFILE")  # Python itself would trust it
    with APIClient(server.url, max_retries=0) as client, pytest.raises(APIConnectionError):
        client.available_models  # noqa: B018
    context = ssl.create_default_context(cafile=str(certificate))
    with APIClient(server.url, verify=context) as client:
        assert client.available_models == ["mock"]


# --- the module's functions ---


def test_json_loads_is_lenient(caplog: pytest.LogCaptureFixture) -> None:
    assert api_client.json_loads('{"a": 1}') == {"a": 1}
    assert api_client.json_loads("{") == ""
    assert "weird json content" in caplog.text


def test_talking_in_the_terminal(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["two", "lines", "", "end", "", "bye", ""])

    def read() -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    for _ in range(4):
        scripted.will_answer(ANSWER)
    api_client.main(scripted.url.removeprefix("http://"), session_id=3)
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in scripted.requests]
    assert [body["prompt"] for body in bodies] == ["two\nlines", "", "bye", ""]
    assert {body["session_id"] for body in bodies} == {3}
    assert capsys.readouterr().out.count("hi") == 2


@pytest.mark.parametrize("server_settings", [ServerSettings(server_port=0, api_keys=("k1", "k2"))])
def test_keys(server: Server) -> None:
    with APIClient(server.url) as client, pytest.raises(APIStatusError) as caught:
        client.available_models  # noqa: B018
    assert caught.value.status == 401
    with APIClient(server.url, "k2") as client:
        assert len(client.available_models) == 1
