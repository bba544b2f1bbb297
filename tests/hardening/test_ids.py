"""Ids that clients choose: like another's, a part of another's, far too long, or not printable. And
every route, whatever names it and whatever Host says, without a key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.bridge.fake import FakeEngine
from lmserve.server.app import build_app
from lmserve.server.routes.table import TABLE
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from tests.server.batching import hi, jsonl

ANN, BOB = ({"Authorization": f"Bearer {key}"} for key in ("ann-key", "bob-key"))
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
ODD = (
    *("", " ", ".", "..", "../x", "..%2f", "a/b", "a\\b", "a b", "a\nb", "\x00", "\x7f", "\u202e"),
    *("é", "%00", "*", "{}", "a" * 65, "x" * 2**20, "\ud800"),
)

LANES = (".", "..", "a" * 65)  # of a connection's own lanes may be called so


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine(EngineSettings(engine="mock"))


@pytest.fixture
async def client(
    aiohttp_client: AiohttpClient, fake: FakeEngine, tmp_path: Path
) -> AsyncIterator[TestClient]:
    """Of a server with two keys."""
    settings = Settings(
        sessions=SessionSettings(data_dir=str(tmp_path / "a" / "b")),
        server=ServerSettings(
            server_port=0,
            model_name="mock",
            drain_timeout_s=0.2,
            api_keys=("ann-key", "bob-key"),
            enable_abort_handling=True,
        ),
        engine=EngineSettings(engine="mock"),
    )
    client = await aiohttp_client(build_app(settings, fake))
    yield client
    assert (await client.get("/health")).status == 200


async def test_ids_that_are_none(client: TestClient) -> None:
    for id in ODD:
        body = BytesIO(json.dumps({"id": id}).encode())
        async with client.post("/v1/sessions", data=body, headers=ANN) as response:
            assert response.status == 400, (id[:20], await response.text())
            error = (await response.json())["error"]
            assert len(error["message"]) < 500
        if id in LANES:
            continue
        turn = json.dumps({"type": "response.create", "input": "hi", "stream_id": id})
        async with client.ws_connect("/v1/responses", headers=ANN) as socket:
            await socket.send_str(turn)
            event = json.loads((await socket.receive(timeout=20)).data)
            assert event["type"] == "error", (id[:20], event)


async def test_names_of_others_reach_nothing(client: TestClient) -> None:
    """A part of an id, and the whole of it, of a session, an answer, a file and a batch."""
    mine = await made(client, ANN)
    for kind, id in mine.items():
        path = PATHS[kind]
        for other in (id, id[:-1], id[: len(id) // 2], id.upper(), id + "0", id.replace("_", "-")):
            for method, after in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), *MORE[kind]):
                url = f"{path}/{other}{after}"
                async with client.request(method, url, json={}, headers=BOB) as response:
                    assert response.status in (400, 404, 405), (method, url, response.status)
    for kind, id in mine.items():
        async with client.get(f"{PATHS[kind]}/{id}", headers=ANN) as response:
            assert response.status == 200, (kind, await response.text())


PATHS = {
    "session": "/v1/sessions",
    "response": "/v1/responses",
    "stream": "/v1/streams",
    "file": "/v1/files",
    "batch": "/v1/batches",
}
MORE: dict[str, tuple[tuple[str, str], ...]] = {
    "session": (("POST", "/fork"), ("POST", "/messages"), ("GET", "/export"), ("POST", "/turns")),
    "response": (("POST", ""), ("POST", "/steer"), ("GET", "/input_items")),
    "stream": (),
    "file": (("GET", "/content"),),
    "batch": (),
}


async def made(client: TestClient, who: dict[str, str]) -> dict[str, str]:
    """One of each."""
    ids: dict[str, str] = {}
    async with client.post("/v1/sessions", json={"id": "kept-session"}, headers=who) as response:
        ids["session"] = (await response.json())["id"]
    async with client.post("/v1/responses", json={"input": "hi"}, headers=who) as response:
        ids["response"] = (await response.json())["id"]
    asked = CHAT | {"stream": True}
    headers = who | {"X-Resumable": "1"}
    async with client.post("/v1/chat/completions", json=asked, headers=headers) as response:
        ids["stream"] = response.headers["X-Stream-Id"]
        await response.read()
    ids["file"] = await uploaded(client, who, jsonl([hi("a")]), "a.jsonl")
    asked = {"input_file_id": ids["file"], "endpoint": "/v1/chat/completions"}
    asked["completion_window"] = "24h"
    async with client.post("/v1/batches", json=asked, headers=who) as response:
        ids["batch"] = (await response.json())["id"]
    return ids


async def uploaded(client: TestClient, who: dict[str, str], content: bytes, name: str) -> str:
    """With the name as it is: a library would write another."""
    quoted = name.encode("utf-8", "surrogateescape").replace(b'"', b"%22")
    body = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + quoted + b'"\r\n\r\n'
        + content + b"\r\n--b--\r\n"
    )  # fmt: skip
    headers = who | {"Content-Type": "multipart/form-data; boundary=b"}
    async with client.post("/v1/files", data=body, headers=headers) as response:
        assert response.status == 200, (name, await response.text())
        return str((await response.json())["id"])


NAMES = (
    "../../x",
    "/etc/x",
    "..\\x",
    "a/../../b",
    "..",
    ".",
    "C:\\x",
    "%2e%2e%2fx",
    "x" * 5000,
    "é",
)


def kept_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


async def test_a_files_name_is_no_path(client: TestClient, tmp_path: Path) -> None:
    before = kept_in(tmp_path)
    ids = [await uploaded(client, ANN, b"x", name) for name in NAMES]
    new = kept_in(tmp_path) - before
    assert all(name.startswith(tuple(ids)) for name in new if "sqlite" not in name), new
    for id in ids:
        async with client.get(f"/v1/files/{id}/content", headers=ANN) as response:
            assert await response.read() == b"x"


async def test_another_keys_numbers_are_other_sessions(
    client: TestClient, fake: FakeEngine
) -> None:
    """LMDeploy's clients count from 0, each for itself."""
    fake.will_hang("Hel")
    body = {"messages": CHAT["messages"], "stream": True, "session_id": 1}
    answer = await client.post("/v1/chat/completions", json=body, headers=ANN)
    await answer.content.readuntil(b"Hel")
    for wish in ({"session_id": 1}, {"session_id": 10}, {"abort_all": True}):
        await (await client.post("/abort_request", json=wish, headers=BOB)).read()
    assert not fake.aborts
    assert (await client.post("/abort_request", json={"session_id": 1}, headers=ANN)).status == 200
    assert b'"abort"' in await answer.read()


# --- no request line and no Host gets around the keys -----------------------------------------

HOSTS = (
    "a/?x=",
    "a?/health",
    "a#/health",
    "/health",
    "a@b/health",
    "A",
    "a..",
    "a:b",
    "",
    "é",
    "[::",
)
FORMS = (
    "{}",
    "/{}",
    "http://a{}",
    "http://a/health?{}",
    "{}?/health",
    "{}/",
    "{}#/health",
    "/web/..{}",
)


def heads() -> Iterator[str]:
    """Of every route that asks for a key."""
    for route in TABLE:
        if route.open:
            continue
        path = route.path.replace("{model:.+}", "m").replace("{", "").replace("}", "")
        for host in HOSTS:
            yield f"{route.method} {path} HTTP/1.1\r\nHost: {host}"
        for form in (*FORMS, path.replace("/", "/%2e/").removeprefix("/%2e"), path.upper()):
            yield f"{route.method} {form.format(path)} HTTP/1.1\r\nHost: a"


async def test_no_host_and_no_request_line_opens_a_route(client: TestClient) -> None:
    async def one(head: str) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(f"{head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
        if b"\r\n\r\nok" in answer or answer.startswith(b"HTTP/1.1 200"):
            assert "/health?" in head, (head, answer)  # which is open
        else:
            assert answer[9:12] in (b"400", b"401", b"403", b"404", b"421"), (head, answer[:200])

    gate = asyncio.Semaphore(16)
    await asyncio.gather(*map(one, heads()))
