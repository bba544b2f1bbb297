"""Links to media, media itself and tensors: refused everywhere, and nobody is ever called."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp

from tests.hardening.asking import ask
from tests.hardening.conftest import told
from tests.hardening.doors import DOORS, Door

CALLS = frozenset({"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"})
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
BOMBS = {
    "huge": PNG + b"\x7f\xff\xff\xff" * 2 + b"\x08\x02\0\0\0",
    "0x0": PNG + bytes(8) + b"\x08\x02\0\0\0",
    "cut": PNG[:9],
    "long": b"GIF89a" + bytes(50_000),
}
TENSORS: dict[str, Any] = {
    "prompt_embeds": base64.b64encode(b"\x80\x04cos\nsystem\n(S'true'\ntR.").decode(),  # a pickle
    "image_data": ["AAAAAA=="],
    "mm_processor_kwargs": {"a": "gASVAAAAAAAAAAA="},
}


def links(port: int) -> list[str]:
    """Ways to name a listener of this machine, or a place that only this machine can reach."""
    hosts = (
        *("127.0.0.1", "0.0.0.0", "localhost", "localhost.", "[::1]", "[::]", "127.1"),
        *("[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "2130706433", "0x7f.1"),
        *("0177.0.0.1", "example.com@127.0.0.1", "example.com\\@127.0.0.1", "①27.0.0.1"),
    )
    at = [f"http://{host}:{port}/a.png" for host in hosts]
    kinds = [f"{kind}://127.0.0.1:{port}/a" for kind in ("https", "ftp", "gopher", "ws", "HTTP")]
    others = (
        f"//127.0.0.1:{port}/a",
        f"http://127.0.0.1:{port}#@example.com/a",
        "file:///etc/hosts",
    )
    data = [f"data:image/png;base64,{base64.b64encode(bomb).decode()}" for bomb in BOMBS.values()]
    return [*at, *kinds, *others, "http://169.254.169.254/latest/meta-data/", "", "file-x", *data]


def parts(link: str) -> list[dict[str, Any]]:
    """As OpenAI, Anthropic and others write them in a message."""
    source = {"type": "url", "url": link}
    return [
        *({"type": kind, kind: {"url": link}} for kind in ("image_url", "video_url", "audio_url")),
        {"type": "image_url", "image_url": link},
        {"type": "input_image", "image_url": link},
        {"type": "input_file", "file_url": link},
        {"type": "input_file", "file_id": link},
        {"type": "input_audio", "input_audio": {"data": link, "format": "wav"}},
        {"type": "file", "file": {"file_data": link, "file_id": link}},
        {"type": "image", "source": source},
        {"type": "document", "source": source},
        {"type": "image_embeds", "image_embeds": link},
    ]


def bodies(door: Door, link: str) -> Iterator[dict[str, Any]]:
    """All that this door may be sent of it."""
    contents = [[part] for part in parts(link)]
    messages = [[{"role": "user", "content": content}] for content in contents]
    result = {"type": "tool_result", "tool_use_id": "a", "content": contents[-3]}
    match door.path:
        case "/v1/messages" | "/v1/messages/count_tokens":
            messages.append([{"role": "user", "content": [result]}])
            yield from ({"messages": each} for each in messages)
        case path if "messages" in door.names or path == "/tokenize":
            yield from ({"messages": each, "prompt": None} for each in messages)
        case "/v1/responses" | "/v1/sessions/hardened/turns":
            yield from ({"input": each} for each in messages)
        case "/v1/chat/interactive":
            yield {"image_url": link or "x"}
            yield from ({"prompt": each} for each in messages)
        case "/api/chat":
            yield from ({"messages": each} for each in messages)
            yield {"messages": [{"role": "user", "content": "x", "images": [link]}]}
        case "/api/generate":
            yield {"images": [link]}
        case "/v1/embeddings" | "/api/embed" | "/get_ppl":
            yield from ({"input": each} for each in messages)
        case "/v1/rerank":
            yield from ({"documents": each} for each in contents)


@contextmanager
def nobody_called() -> Iterator[None]:
    """Neither the network nor its names are asked, by any thread but this test's own."""
    called: list[tuple[str, Any]] = []
    listening, own = True, threading.get_ident()

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if listening and event in CALLS and threading.get_ident() != own:
            called.append((event, args))

    sys.addaudithook(heard)  # there is no taking it away
    try:
        yield
    finally:
        listening = False
    assert not called, called


async def test_no_link_is_followed(client: aiohttp.ClientSession) -> None:
    reached: list[str] = []
    listener = await asyncio.start_server(
        lambda _, writer: (reached.append("x"), writer.close()), "127.0.0.1", 0
    )
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        with nobody_called():
            for link in links(port):
                await _all_refused(client, DOORS[0], link)
            for door in DOORS[1:]:
                await _all_refused(client, door, f"http://127.0.0.1:{port}/a.png")
                await _all_refused(client, door, "file:///etc/hosts")
    assert not reached


async def _all_refused(client: aiohttp.ClientSession, door: Door, link: str) -> None:
    for fields in bodies(door, link):
        status, answer = await ask(client, door, json.dumps(door.body | fields))
        assert status == 400, (door.id, fields, answer)
        message, _ = told(answer)
        assert "0x" not in message and "/etc" not in message.replace("file:///etc", "")


async def test_no_tensor_is_read(client: aiohttp.ClientSession) -> None:
    """Where a door does not know the field, it is nobody's matter: the answer is the same."""
    for door in DOORS:
        for field, value in TENSORS.items():
            status, answer = await ask(client, door, json.dumps(door.body | {field: value}))
            if status == 400:
                assert field in told(answer)[0], (door.id, answer)
            else:
                assert (status, door.body.get("store")) == (200, None), (door.id, answer)
