"""A server of ours in a thread, one that answers what it is told, and LMDeploy's own clients."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from lmserve_client import api_client as our_api_client

from lmserve.bridge.fake import FakeEngine
from lmserve.cli.loop import LoopThread
from lmserve.errors import ModelError
from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from lmserve.weights import files

Respond = Callable[[bytes], bytes]  # a request's body to the whole response


@pytest.fixture(scope="session")
def loop() -> Iterator[LoopThread]:
    """Where servers run, so that tests may block."""
    with LoopThread() as running:
        yield running


@contextmanager
def serving(loop: LoopThread, settings: Settings, fake: FakeEngine | None) -> Iterator[Server]:
    scope = running_server(settings, fake)
    server = loop.call(scope.__aenter__())
    try:
        yield server
    finally:
        loop.call(scope.__aexit__(None, None, None))


@pytest.fixture
def server_settings() -> ServerSettings:
    return ServerSettings(server_port=0, model_name="mock", drain_timeout_s=0.2)


@pytest.fixture
def session_len() -> int | None:
    return None


@pytest.fixture
def fake(loop: LoopThread, session_len: int | None) -> FakeEngine:
    async def make() -> FakeEngine:
        return FakeEngine(EngineSettings(engine="mock", session_len=session_len))

    return loop.call(make())


@pytest.fixture
def server(
    loop: LoopThread, server_settings: ServerSettings, fake: FakeEngine, tmp_path: Path
) -> Iterator[Server]:
    """Over the fake engine."""
    settings = Settings(
        server=server_settings,
        engine=EngineSettings(engine="mock"),
        sessions=SessionSettings(data_dir=str(tmp_path)),
    )
    with serving(loop, settings, fake) as running:
        yield running


@pytest.fixture(scope="module")
def default_url(loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The default model, in an engine process."""
    try:
        model = files.resolve(None, files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR")))
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")
    settings = Settings(
        server=ServerSettings(server_port=0),
        engine=EngineSettings(
            model=str(model.path), session_len=512, threads=1, stuck_after_s=60.0
        ),
        sessions=SessionSettings(data_dir=str(tmp_path_factory.mktemp("data"))),
    )
    with serving(loop, settings, None) as running:
        loop.call(running.handle.wait_ready())
        loop.call(running.service.prepare())
        yield running.url


class Scripted:
    """Answers each connection with the next response it was told; keeps the requests."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._responses: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def will_answer(
        self, body: bytes, status: str = "200 OK", *headers: str, length: int | None = None
    ) -> Scripted:
        """`length`: what the response promises, where it is not what it holds."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {length or len(body)}", *headers]
        head = "\r\n".join([*lines, "Connection: close", "", ""])
        self._responses.append(head.encode() + body)
        return self

    def close(self) -> None:
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(_read_request(connection))
                if self._responses:
                    connection.sendall(self._responses.pop(0))


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


# --- LMDeploy's own ---


def lmdeploy_files(version: str) -> Path:
    """A folder with the .py files of that wheel, fetched once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "lmserve" / "tests" / f"lmdeploy-{version}"
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            wheel = _fetch(f"lmdeploy=={version}", partial)
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".py")]
                archive.extractall(partial, names)
            wheel.unlink()
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _fetch(requirement: str, folder: Path) -> Path:
    """The wheel, for one platform wherever this runs: only its Python is used."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command += ["--retries", "1", "--timeout", "15"]
    command += ["--only-binary=:all:", "--python-version", "3.11", "--platform"]
    command += ["manylinux2014_x86_64", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    if done.returncode != 0:
        *_, reason = done.stderr.strip().splitlines() or ["pip does not say why"]
        pytest.skip(f"{requirement} cannot be had: {reason}")
    return next(folder.glob("*.whl"))


@contextmanager
def lmdeploy_api_client(version: str) -> Iterator[ModuleType]:
    """Its module `api_client`, imported from its own files without the package's `__init__`,
    which wants CUDA."""
    package = ModuleType("lmdeploy")
    package.__path__ = [str(lmdeploy_files(version) / "lmdeploy")]
    sys.modules["lmdeploy"] = package
    try:
        yield importlib.import_module("lmdeploy.serve.openai.api_client")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lmdeploy"]:
            del sys.modules[name]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("0.2.3", marks=[pytest.mark.network, pytest.mark.timeout(300)]),
        pytest.param("0.9.2", marks=[pytest.mark.network, pytest.mark.timeout(300)]),
        "ours",
    ],
)
def api_client(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A module with `APIClient`: LMDeploy's two, and the one that takes their place."""
    if request.param == "ours":
        yield our_api_client
    else:
        with lmdeploy_api_client(request.param) as module:
            yield module
