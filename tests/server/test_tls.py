"""HTTPS: a real handshake, and every way the files can be wrong, told before anything starts."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, TCPConnector

from lmserve.edge import tls
from lmserve.errors import SetupError
from lmserve.server.lifecycle import check, running_server
from lmserve.settings import ServerSettings, Settings

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="no openssl command to make a certificate with"
)
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem and key.pem, and others that do not go with them."""
    folder = tmp_path_factory.mktemp("tls")
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -nodes"
    extra = "-subj /CN=lmserve -addext subjectAltName=IP:127.0.0.1"
    for name in ("", "other-"):
        _run(f"{new} {extra} -keyout {name}key.pem -out {name}cert.pem", folder)
    _run("openssl pkey -in key.pem -aes256 -passout pass:secret -out locked.pem", folder)
    (folder / "text.pem").write_text("not a certificate\n")
    return folder


def _run(command: str, folder: Path) -> None:
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


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
    assert tls.make_context().minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("cert", "key", "told"),
    [
        ("other-cert.pem", "key.pem", "not of one pair"),
        ("text.pem", "key.pem", "PEM"),
        ("cert.pem", "text.pem", "PEM"),
        ("missing.pem", "key.pem", r"\$SSL_CERTFILE .*no such file"),
        ("cert.pem", "missing.pem", r"\$SSL_KEYFILE .*no such file"),
        ("", "key.pem", r"\$SSL_CERTFILE .*directory"),
        ("cert.pem", "locked.pem", "encrypted: decrypt it"),
    ],
)
def test_wrong_files(use: Any, cert: str, key: str, told: str) -> None:
    use(cert, key)
    with pytest.raises(SetupError, match=told) as caught:
        check(ServerSettings(server_port=0, ssl=True))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["SSL_CERTFILE", "SSL_KEYFILE"])
def test_variables_that_are_not_set(use: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use()
    monkeypatch.delenv(name)
    with pytest.raises(SetupError, match=rf"--ssl needs \${name}: set it"):
        check(ServerSettings(server_port=0, ssl=True))
