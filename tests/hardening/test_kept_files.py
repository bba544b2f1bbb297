"""Files of a server that somebody else changed, and names that would lead elsewhere."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.engine.kv_file import DIGEST_BYTES, MAGIC, MAX_HEADER_BYTES
from lmserve.errors import SetupError
from lmserve.server import keys
from lmserve.server.lifecycle import running_server
from lmserve.service.store.rows import SessionKey
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from tests.hardening.conftest import told
from tests.hardening.real import RealServer

RESPONSES = "/v1/responses"
START = len(MAGIC) + 4  # of the header


def sealed(data: bytes) -> bytes:
    """With the checksum that belongs to it."""
    return data + hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def with_header(data: bytes, **fields: Any) -> bytes:
    """Whole, but for these fields."""
    size = int.from_bytes(data[len(MAGIC) : START], "little")
    header = msgspec.msgpack.decode(data[START : START + size]) | fields
    packed = msgspec.msgpack.encode(header)
    body = data[START + size : -DIGEST_BYTES]
    return sealed(MAGIC + len(packed).to_bytes(4, "little") + packed + body)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def sized(data: bytes, size: int) -> bytes:
    return MAGIC + size.to_bytes(4, "little") + data[START:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in its head": lambda data: data[: START - 1],
    "cut in its header": lambda data: data[: START + 5],
    "cut in its KV": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "another version": lambda data: flipped(data, len(MAGIC) - 1),
    "a bit of its header": lambda data: flipped(data, START + 9),
    "a bit of its KV": lambda data: flipped(data, len(data) // 2),
    "a bit of its checksum": lambda data: flipped(data, len(data) - 1),
    "a header of four gigabytes": lambda data: sized(data, 2**32 - 1),
    "the largest header": lambda data: sized(data, MAX_HEADER_BYTES),
    "another model's": lambda data: with_header(data, fingerprint="0" * 64),
    "tokens of no bytes": lambda data: with_header(data, token_bytes=0),
    "tokens of too many bytes": lambda data: with_header(data, token_bytes=2**62),
    "less than no bytes": lambda data: with_header(data, token_bytes=-1),
    "no tokens": lambda data: with_header(data, token_ids=b""),
    "half a token": lambda data: with_header(data, token_ids=b"abcde"),
    "more tokens than KV": lambda data: with_header(data, token_ids=bytes(4 * 10**6)),
    "another field": lambda data: with_header(data, more=1),
    "a pickle": lambda data: b"\x80\x04cos\nsystem\n(S'touch here'\ntR.",
}


@asynccontextmanager
async def conversation(http: aiohttp.ClientSession) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Its session, and what its next turn asks."""
    turn = {"input": "a story " * 20, "max_output_tokens": 4, "temperature": 0}
    async with http.post(RESPONSES, json=turn) as response:
        first = await response.json()
        assert response.status == 200, first
    session = first["session"]
    body = {"input": "on", "max_output_tokens": 12, "temperature": 0}
    yield session, body | {"previous_response_id": first["id"]}
    assert (await http.delete(f"/v1/sessions/{session}")).status == 200


async def only_on_disk(real: RealServer, key: SessionKey) -> Path:
    """Its KV is in its file, and not in the engine."""
    warmth = real.app[keys.WARMTH]

    async def forget() -> Path:
        await warmth.write_all()
        assert warmth._spill._files is not None
        del warmth._warm[key]
        await warmth._unpin(key)
        await real.handle.control("clear_cache")
        return warmth._spill._files.path(key)

    return await real.inside(forget)


async def said(http: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[str, int]:
    """The answer, and how much of its prompt was known."""
    async with http.post(RESPONSES, json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
    usage = answer["usage"]
    text = answer["output"][0]["content"][0]["text"]
    return text, usage["input_tokens_details"]["cached_tokens"]


async def test_kv_that_somebody_changed_is_not_used(
    real: RealServer, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with conversation(http) as (session, body):
        key = SessionKey("", session)
        path = await only_on_disk(real, key)
        good = path.read_bytes()
        text, restored = await said(http, body)
        assert restored > 100
        ways: dict[str, Callable[[], object]] = {
            what: lambda damage=damage: path.write_bytes(damage(good))
            for what, damage in DAMAGES.items()
        }
        (tmp_path / "elsewhere.kv").write_bytes(good)
        ways["a link"] = lambda: path.symlink_to(tmp_path / "elsewhere.kv")
        ways["a pipe"] = lambda: os.mkfifo(path)
        ways["nothing"] = lambda: None
        for what, change in ways.items():
            await only_on_disk(real, key)
            path.unlink(missing_ok=True)
            change()
            now, cached = await said(http, body)
            assert (now, cached < restored) == (text, True), what
        assert (tmp_path / "elsewhere.kv").read_bytes() == good


NAMES = (
    "../x",
    "..",
    "/etc/passwd",
    "a/../../x",
    "..\\x",
    "x\0y",
    "~root",
    "%2e%2e%2fx",
    "." * 300,
)


async def test_names_lead_nowhere(
    real: RealServer, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    folder = Path(real.app[keys.SETTINGS].sessions.data_dir or "")
    before = {path for path in folder.parent.rglob("*") if folder not in path.parents}
    for name in NAMES:
        async with http.post("/v1/sessions", json={"id": name}) as response:
            assert response.status in (200, 400), name
            kept = response.status == 200
        for path in ("/v1/files/{}/content", "/v1/files/{}", "/v1/batches/{}", "/v1/sessions/{}"):
            quoted = path.format("".join(f"%{byte:02x}" for byte in name.encode()))
            async with http.get(f"{real.url}{quoted}") as response:
                known = 200 if kept and "sessions" in path else 404
                assert response.status in (400, known), (name, path)
        data = aiohttp.FormData({"purpose": "batch"})
        data.add_field("file", b'{"custom_id":"1"}', filename=name.replace("\0", ""))
        async with http.post("/v1/files", data=data) as response:
            answer = await response.json()
            if response.status == 200:
                assert (await http.delete(f"/v1/files/{answer['id']}")).status == 200
            else:
                told(await response.read())
    assert {path for path in folder.parent.rglob("*") if folder not in path.parents} == before


# --- the file of conversations ------------------------------------------------------------


def mock_settings(folder: Path) -> Settings:
    return Settings(
        server=ServerSettings(server_port=0, model_name="mock", drain_timeout_s=0.1),
        engine=EngineSettings(engine="mock"),
        sessions=SessionSettings(data_dir=str(folder)),
    )


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[aiohttp.ClientSession]:
    settings = mock_settings(folder)
    async with running_server(settings, FakeEngine(settings.engine)) as server:
        async with aiohttp.ClientSession(server.url) as http:
            yield http


def scribbled(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "not SQLite", b"x" * 5000
    yield "a head alone", data[:100]
    yield "another head", b"y" * 100 + data[100:]
    yield "a page", data[:4096] + b"\xff" * 4096 + data[8192:]
    yield "half of it", data[: len(data) // 2]
    yield "all but the head", data[:100] + bytes(len(data) - 100)


async def test_a_damaged_file_of_conversations_is_told(tmp_path: Path) -> None:
    """At the start, with the remedy; or, where it looks well, when it is read. Never a crash."""
    path = tmp_path / "good" / "sessions.sqlite3"
    async with serving(path.parent) as http:
        for number in range(30):
            body = {"id": f"s{number}", "messages": [{"role": "user", "content": "x" * 500}]}
            assert (await http.post("/v1/sessions", json=body)).status == 200
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number, (what, data) in enumerate(scribbled(path.read_bytes())):
        folder = tmp_path / f"bad-{number}"
        folder.mkdir()
        (folder / path.name).write_bytes(data)
        try:
            async with serving(folder) as http:
                await use_damaged(http, what)
        except SetupError as error:
            assert "--data-dir" in error.message, what


async def use_damaged(http: aiohttp.ClientSession, what: str) -> None:
    for path in ("/v1/sessions", "/v1/sessions/s3/messages", "/v1/sessions/s29/export"):
        async with http.get(path) as response:
            if response.status >= 400:
                assert response.status in (404, 500), (what, path)
                message, _ = told(await response.read())
                assert "internal error" not in message, (what, message)
    plain = {"prompt": "hi", "max_tokens": 3}
    assert (await http.post("/v1/completions", json=plain)).status == 200
    assert (await http.get("/health")).status == 200


async def test_kv_has_no_place_on_the_disk(
    real: RealServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Conversations go on without."""
    spill = real.app[keys.WARMTH]._spill
    monkeypatch.setattr(spill._files, "_folder", tmp_path / "gone")
    async with conversation(http) as (session, body):
        text, _ = await said(http, body)
        await real.inside(real.app[keys.WARMTH].write_all)
        assert not spill.has(SessionKey("", session))
        await real.inside(lambda: real.handle.control("clear_cache"))
        assert (await said(http, body))[0] == text
    spill._paused_until = float("-inf")  # tried again a minute after
