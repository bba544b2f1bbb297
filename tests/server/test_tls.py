"""HTTPS: a real handshake, and every way the files can be wrong, told before anything starts."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, TCPConnector

from lmserve.edge import connections as edge_connections
from lmserve.edge import reload, tls
from lmserve.errors import SetupError
from lmserve.server.lifecycle import check, running_server
from lmserve.settings import LimitSettings, ServerSettings, Settings
from tests.server.bare import GET, opened

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="no openssl command to make a certificate with"
)
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem and key.pem, and others that do not go with them."""
    folder = tmp_path_factory.mktemp("tls")
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    extra = "-subj /CN=lmserve -addext subjectAltName=IP:127.0.0.1"
    for name, days in (("", 2), ("other-", 3)):
        _run(f"{new} {extra} -days {days} -keyout {name}key.pem -out {name}cert.pem", folder)
    _run("openssl pkey -in key.pem -aes256 -passout pass:secret -out locked.pem", folder)
    (folder / "text.pem").write_text("not a certificate\n")
    os.mkfifo(folder / "pipe.pem")
    return folder


def _run(command: str, folder: Path) -> str:
    done = subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def use(files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(cert: str = "cert.pem", key: str = "key.pem") -> None:
        monkeypatch.setenv("SSL_CERTFILE", str(files / cert))
        monkeypatch.setenv("SSL_KEYFILE", str(files / key))

    return use


@pytest.fixture
def https(settings: Settings) -> Settings:
    return dataclasses.replace(settings, server=dataclasses.replace(settings.server, ssl=True))


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_over_https(
    use: Any, files: Path, https: Settings, fake: Any, stream: bool
) -> None:
    use()
    trust = await asyncio.to_thread(ssl.create_default_context, cafile=files / "cert.pem")
    async with running_server(https, fake) as server:
        assert server.url.startswith("https://127.0.0.1:")
        async with ClientSession(server.url, connector=TCPConnector(ssl=trust)) as session:
            body = HELLO | {"stream": stream}
            async with session.post("/v1/chat/completions", json=body) as response:
                assert response.status == 200
                assert b'"finish_reason":"length"' in await response.read()


async def test_plain_http_and_old_versions_are_refused_quietly(
    use: Any, https: Settings, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    use()
    async with running_server(https, fake) as server:
        parts = urlsplit(server.url)
        with caplog.at_level(logging.INFO):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1 200" not in await reader.read()
            writer.close()
        assert not [record for record in caplog.records if record.exc_info]
    context = await asyncio.to_thread(tls.make_context)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


async def shown_at(url: str, server_hostname: str | None) -> bytes:
    """The certificate that a client gets, with SNI or without."""
    parts = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    name = parts.hostname if server_hostname is None else server_hostname
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port, ssl=context, server_hostname=name
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return bytes(shown)


@pytest.fixture
def changing(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts other files in the place of those that the server was started with."""
    monkeypatch.setattr(reload, "INTERVAL_S", 0.01)

    def change(prefix: str, *, cert: bool = True, key: bool = True) -> None:
        for name, wanted in (("cert.pem", cert), ("key.pem", key)):
            if wanted:
                shutil.copy(files / f"{prefix}{name}", tmp_path / "new")
                (tmp_path / "new").replace(tmp_path / name)

    change("")
    monkeypatch.setenv("SSL_CERTFILE", str(tmp_path / "cert.pem"))
    monkeypatch.setenv("SSL_KEYFILE", str(tmp_path / "key.pem"))
    return change


async def until_shown(url: str, wanted: bytes) -> None:
    async with asyncio.timeout(30):
        while await shown_at(url, None) != wanted:
            pass


async def test_a_new_certificate_is_shown_and_connections_stay(
    changing: Any, files: Path, https: Settings, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def der(name: str) -> bytes:
        return ssl.PEM_cert_to_DER_cert((files / name).read_text())

    old = await asyncio.to_thread(der, "cert.pem")
    new = await asyncio.to_thread(der, "other-cert.pem")
    trust = await asyncio.to_thread(ssl.create_default_context, cafile=files / "cert.pem")
    connector = TCPConnector(ssl=trust, limit=1)
    async with running_server(https, fake) as server:
        async with ClientSession(server.url, connector=connector) as session:
            assert (await session.get("/health")).status == 200
            assert await shown_at(server.url, None) == old  # an address: no SNI
            assert await shown_at(server.url, "lmserve.example") == old

            await asyncio.to_thread(changing, "other-", cert=False)  # half of a pair
            async with asyncio.timeout(30):
                while "not of one pair" not in caplog.text:
                    assert await shown_at(server.url, None) == old
            assert await shown_at(server.url, None) == old

            await asyncio.to_thread(changing, "other-")
            await until_shown(server.url, new)
            assert await shown_at(server.url, "lmserve.example") == new
            assert (await session.get("/health")).status == 200  # as it connected before


async def told_to_expire(session: ClientSession) -> float:
    async with session.get("/metrics") as response:
        (value,) = re.findall(
            r"^lmserve:certificate_expires_seconds{.*} (.*)$", await response.text(), re.MULTILINE
        )
        return float(value)


async def test_when_it_expires_is_told(
    changing: Any, files: Path, https: Settings, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def end(name: str) -> int:
        shown = _run(f"openssl x509 -noout -enddate -in {name}", files)
        return ssl.cert_time_to_seconds(shown.strip().removeprefix("notAfter="))

    old, new = [await asyncio.to_thread(end, f"{name}cert.pem") for name in ("", "other-")]
    assert old != new
    connector = TCPConnector(ssl=False)
    async with (
        running_server(https, fake) as server,
        ClientSession(server.url, connector=connector) as session,
    ):
        assert await told_to_expire(session) == old
        await asyncio.to_thread(changing, "other-", cert=False)  # half of a pair: the old one stays
        async with asyncio.timeout(30):
            while "not of one pair" not in caplog.text:
                assert await told_to_expire(session) == old
            await asyncio.to_thread(changing, "other-")
            while await told_to_expire(session) != new:
                pass


async def test_a_certificate_is_read_when_asked(
    changing: Any, files: Path, https: Settings, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "INTERVAL_S", 3600)
    async with running_server(https, fake) as server:
        before = await shown_at(server.url, None)
        await asyncio.to_thread(changing, "other-")
        assert await shown_at(server.url, None) == before
        server.app[reload.RELOADS].now()
        async with asyncio.timeout(30):
            while await shown_at(server.url, None) == before:
                pass


async def test_a_pipe_that_comes_later_is_not_waited_for(
    changing: Any,
    files: Path,
    tmp_path: Path,
    https: Settings,
    fake: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_server(https, fake) as server:
        before = await shown_at(server.url, None)
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "pipe").replace(tmp_path / "key.pem")
        async with asyncio.timeout(30):
            while "is no file" not in caplog.text:
                assert await shown_at(server.url, None) == before
            await asyncio.to_thread(changing, "other-")
            while await shown_at(server.url, None) == before:
                pass


async def test_a_handshake_that_does_not_come(use: Any, https: Settings, fake: Any) -> None:
    use()
    limits = LimitSettings(header_timeout_s=0.1)
    async with running_server(dataclasses.replace(https, limits=limits), fake) as server:
        async with opened(server.url) as client:
            client.send(b"\x16\x03\x01")
            assert await client.ended() == b""


async def test_no_goodbye_is_waited_for_long(
    use: Any, files: Path, https: Settings, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that makes room for another, and does not say goodbye, holds nothing."""
    monkeypatch.setattr(edge_connections, "GOODBYE_S", 0.05)
    use()
    limited = dataclasses.replace(https, limits=LimitSettings(max_connections=1))
    trust = await asyncio.to_thread(ssl.create_default_context, cafile=files / "cert.pem")

    def asked(url: str) -> ssl.SSLSocket:
        parts = urlsplit(url)
        plain = socket.create_connection((parts.hostname, parts.port), timeout=15)
        client = trust.wrap_socket(plain, server_hostname=parts.hostname)
        client.sendall(GET)
        assert b" 200 " in client.recv(2**16)
        return client

    def ended(client: ssl.SSLSocket) -> None:
        while socket.socket.recv(client, 2**16):  # past TLS, which would answer the goodbye
            pass

    async with running_server(limited, fake) as server:
        first = await asyncio.to_thread(asked, server.url)
        with first, await asyncio.to_thread(asked, server.url):
            await asyncio.to_thread(ended, first)


async def test_connections_over_the_limit_are_told(
    use: Any, files: Path, https: Settings, fake: Any
) -> None:
    use()
    trust = await asyncio.to_thread(ssl.create_default_context, cafile=files / "cert.pem")
    limits = LimitSettings(max_connections=1)
    async with running_server(dataclasses.replace(https, limits=limits), fake) as server:
        async with opened(server.url, ssl=trust) as first:
            first.send(GET[:10])
            async with opened(server.url, ssl=trust) as second:
                second.send(GET)
                assert (await second.answer())[0] == 503
            first.send(GET[10:])
            assert (await first.answer())[0] == 200


@pytest.mark.parametrize(
    ("cert", "key", "told"),
    [
        ("other-cert.pem", "key.pem", "not of one pair"),
        ("text.pem", "key.pem", "PEM"),
        ("cert.pem", "text.pem", "PEM"),
        ("missing.pem", "key.pem", r"\$SSL_CERTFILE .*no such file"),
        ("cert.pem", "missing.pem", r"\$SSL_KEYFILE .*no such file"),
        ("", "key.pem", r"\$SSL_CERTFILE .*directory"),
        ("pipe.pem", "key.pem", r"\$SSL_CERTFILE .*pipe\.pem: is no file"),
        ("cert.pem", "pipe.pem", r"\$SSL_KEYFILE .*pipe\.pem: is no file"),
        ("cert.pem", "locked.pem", "encrypted: decrypt it"),
    ],
)
def test_wrong_files(use: Any, cert: str, key: str, told: str) -> None:
    use(cert, key)
    with pytest.raises(SetupError, match=told) as caught:
        check(Settings(server=ServerSettings(server_port=0, ssl=True)))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["SSL_CERTFILE", "SSL_KEYFILE"])
def test_variables_that_are_not_set(use: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use()
    monkeypatch.delenv(name)
    with pytest.raises(SetupError, match=rf"--ssl needs \${name}: set it"):
        check(Settings(server=ServerSettings(server_port=0, ssl=True)))
