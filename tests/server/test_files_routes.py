"""/v1/files over the application."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.edge.patience import Patience
from lmserve.server.app import build_app
from lmserve.server.batches import form
from lmserve.service.batches import files
from lmserve.settings import BatchSettings, ServerSettings, SessionSettings, Settings
from tests.server.batching import hi, jsonl, upload
from tests.server.conftest import WatchedEngine

MAX_FILE = 4096


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(
        settings,
        sessions=SessionSettings(data_dir=str(tmp_path)),
        batches=BatchSettings(max_file_bytes=MAX_FILE, max_files_bytes=3 * MAX_FILE),
    )


def on_disk(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "files").iterdir()}


async def test_a_file_is_kept_as_it_came(client: TestClient, tmp_path: Path) -> None:
    data = bytes(range(256)) * 16
    status, file = await upload(client, data, "user_data")
    assert status == 200
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(data),
        "created_at": file["created_at"],
        "expires_at": None,
        "filename": "requests.jsonl",
        "purpose": "user_data",
        "status": "processed",
        "status_details": None,
    }
    assert await (await client.get(f"/v1/files/{file['id']}")).json() == file
    response = await client.get(f"/v1/files/{file['id']}/content")
    assert (await response.read(), response.headers["Content-Length"]) == (data, "4096")
    assert (await client.head(f"/v1/files/{file['id']}/content")).status == 200
    assert on_disk(tmp_path) == {file["id"], f"{file['id']}.json"}
    deleted = await (await client.delete(f"/v1/files/{file['id']}")).json()
    assert deleted == {"id": file["id"], "object": "file", "deleted": True}
    assert on_disk(tmp_path) == set()
    for path in ("", "/content"):
        assert (await client.get(f"/v1/files/{file['id']}{path}")).status == 404
    assert (await client.delete(f"/v1/files/{file['id']}")).status == 404


async def test_files_live_as_long_as_they_are_to(client: TestClient) -> None:
    _, batch = await upload(client, b"x")
    assert batch["expires_at"] - batch["created_at"] == 30 * 86400
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    _, short = await upload(client, b"x", "user_data", **fields)
    assert short["expires_at"] - short["created_at"] == 3600


async def test_files_are_listed(client: TestClient) -> None:
    ids = [
        (await upload(client, b"x", purpose))[1]["id"] for purpose in ("batch", "vision", "batch")
    ]

    async def listed(**params: str) -> tuple[list[str], bool]:
        body = await (await client.get("/v1/files", params=params)).json()
        return [file["id"] for file in body["data"]], body["has_more"]

    assert await listed() == (ids[::-1], False)
    assert await listed(order="asc", limit="2") == (ids[:2], True)
    assert await listed(order="asc", after=ids[1]) == (ids[2:], False)
    assert await listed(purpose="vision") == ([ids[1]], False)
    for params in ({"limit": "0"}, {"limit": "10001"}, {"order": "up"}, {"after": "file-none"}):
        response = await client.get("/v1/files", params=params)
        assert (response.status, (await response.json())["error"]["param"]) == (400, *params)


NAMES = ["../../etc/passwd", "a\0b", "x" * 1_000_000, "", "\r\nSet-Cookie: a", "é/\u202e", "."]


async def test_a_name_is_only_a_name(client: TestClient, tmp_path: Path) -> None:
    kept = set()
    for name in NAMES:
        data = FormData({"purpose": "user_data"}, quote_fields=False)
        data.add_field("file", b"x", filename=name.replace("\r\n", "%0D%0A").replace("\0", ""))
        response = await client.post("/v1/files", data=data)
        if response.status == 400:  # too long a header, or none
            continue
        file = await response.json()
        assert response.status == 200
        assert len(file["filename"]) <= 255
        kept |= {file["id"], f"{file['id']}.json"}
        assert on_disk(tmp_path) == kept
    assert len(kept) == 2 * (len(NAMES) - 1)


UPLOADS: list[tuple[str, dict[str, str], str]] = [
    ("", {}, "purpose"),
    ("batch_output", {}, "purpose"),
    ("x" * 1024, {}, "purpose"),
    ("x" * 1025, {}, "purpose"),
    ("batch", {"expires_after[anchor]": "now"}, "expires_after[anchor]"),
    ("batch", {"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
    ("batch", {"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
    *(
        (
            "batch",
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds},
            "expires_after[seconds]",
        )
        for seconds in ("0", "-1", "3599", "2592001", "1e308", "NaN", "9" * 19, "")
    ),
]


async def test_what_cannot_be_uploaded(client: TestClient, tmp_path: Path) -> None:
    for purpose, fields, param in UPLOADS:
        status, body = await upload(client, b"x", purpose, **fields)
        assert (status, body["error"]["param"]) == (400, param)
    assert (await upload(client, b"x"))[0] == 200  # what was dropped before is gone by now
    assert len(on_disk(tmp_path)) == 2


async def test_a_file_that_is_too_large(client: TestClient, tmp_path: Path) -> None:
    assert (await upload(client, b"x" * MAX_FILE))[0] == 200
    status, body = await upload(client, b"x" * (MAX_FILE + 1))
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    assert (await upload(client, b"x" * MAX_FILE))[0] == 200
    assert (await upload(client, b"x" * MAX_FILE))[0] == 200
    status, body = await upload(client, b"x")
    assert (status, body["error"]["code"]) == (413, "files_full")
    listed = (await (await client.get("/v1/files")).json())["data"]
    await client.delete(f"/v1/files/{listed[0]['id']}")
    assert (await upload(client, b"x"))[0] == 200
    assert len(on_disk(tmp_path)) == 2 * 3


FORM = "multipart/form-data; boundary=xyz"
FILE = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
PURPOSE = b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'


FORMS = [
        ("application/json", b"{}"),
        ("application/x-www-form-urlencoded", b"purpose=batch"),
        ("multipart/form-data", FILE + PURPOSE + b"--xyz--\r\n"),  # no boundary
        ("multipart/form-data; boundary=" + "x" * 100, FILE),
        ("multipart/mixed; boundary=xyz", FILE + PURPOSE + b"--xyz--\r\n"),
        (FORM, b""),
        (FORM, b"nothing of the kind"),
        (FORM, b"--xyz--\r\n"),
        (FORM, PURPOSE + b"--xyz--\r\n"),
        (FORM, FILE + b"--xyz--\r\n"),
        (FORM, PURPOSE + FILE),  # no end
        (FORM, PURPOSE + FILE + FILE + b"--xyz--\r\n"),
        (FORM, PURPOSE * 17 + FILE + b"--xyz--\r\n"),
        (FORM, PURPOSE + FILE.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n")
         + b"--xyz--\r\n"),
        (FORM, b"--xyz\r\n" + b"A: b\r\n" * 10_000 + b"\r\nx\r\n--xyz--\r\n"),
        (FORM, b"--xyz\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\n--xyz--\r\n"),
]  # fmt: skip


async def test_a_form_that_is_none(client: TestClient, tmp_path: Path) -> None:
    for kind, data in FORMS:
        response = await client.post("/v1/files", data=data, headers={"Content-Type": kind})
        assert response.status == 400, (kind, data[:200], await response.text())
        assert (await response.json())["error"]["message"]
    assert (await upload(client, b"x"))[0] == 200
    assert len(on_disk(tmp_path)) == 2


async def test_a_client_that_leaves_leaves_nothing(client: TestClient, tmp_path: Path) -> None:
    come = asyncio.Event()

    async def body() -> Any:
        yield PURPOSE + FILE[:-2]
        yield b"x" * 1000
        await come.wait()

    asked = asyncio.create_task(
        client.post("/v1/files", data=body(), headers={"Content-Type": FORM})
    )
    await asyncio.sleep(0.1)
    asked.cancel()
    await asyncio.wait({asked})
    for _ in range(3):  # all the room is there again
        async with asyncio.timeout(10):
            while (await upload(client, b"x" * MAX_FILE))[0] != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert len(on_disk(tmp_path)) == 2 * 3


async def test_a_client_that_is_too_slow(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "Patience", lambda _: Patience(0.05))
    come = asyncio.Event()

    async def body() -> Any:
        yield PURPOSE + FILE
        await come.wait()

    response = await client.post("/v1/files", data=body(), headers={"Content-Type": FORM})
    assert response.status == 408
    assert "too slowly" in (await response.json())["error"]["message"]
    come.set()
    monkeypatch.undo()
    assert (await upload(client, b"x"))[0] == 200
    assert len(on_disk(tmp_path)) == 2


async def test_so_many_at_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_UPLOADS", 0)
    status, body = await upload(client, b"x")
    assert (status, body["error"]["code"]) == (429, "overloaded")
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_FILES", 0)
    status, body = await upload(client, b"x")
    assert (status, body["error"]["code"]) == (413, "files_full")


async def test_what_is_another_owners_is_not_there(
    aiohttp_client: AiohttpClient, settings: Settings
) -> None:
    keys = ("key-one", "key-two")
    server = ServerSettings(model_name="mock", api_keys=keys)
    app = build_app(replace(settings, server=server), WatchedEngine(settings.engine))
    client = await aiohttp_client(app)
    one, two = [{"Authorization": f"Bearer {key}"} for key in keys]
    data = FormData({"purpose": "batch"})
    data.add_field("file", jsonl([hi("a")]), filename="a")
    file = await (await client.post("/v1/files", data=data, headers=one)).json()
    fields = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    fields["completion_window"] = "24h"
    batch = await (await client.post("/v1/batches", json=fields, headers=one)).json()
    for path, id in (("/v1/files", file["id"]), ("/v1/batches", batch["id"])):
        for headers, seen in ((one, True), (two, False)):
            listed = (await (await client.get(path, headers=headers)).json())["data"]
            assert (id in [each["id"] for each in listed]) is seen
    for method, path in (
        ("GET", f"/v1/files/{file['id']}"),
        ("GET", f"/v1/files/{file['id']}/content"),
        ("DELETE", f"/v1/files/{file['id']}"),
        ("GET", f"/v1/batches/{batch['id']}"),
        ("POST", f"/v1/batches/{batch['id']}/cancel"),
    ):
        assert (await client.request(method, path, headers=two)).status == 404
        assert (await client.request(method, path)).status == 401
    assert (await client.post("/v1/batches", json=fields, headers=two)).status == 404
    assert (await client.get(f"/v1/files/{file['id']}", headers=one)).status == 200
