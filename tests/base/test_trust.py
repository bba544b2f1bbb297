"""What the package never does, whoever asks: read from its source, so that a new file is seen.
That nothing is unpickled, and no text run: `tests/hardening/test_advisories.py`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "lmserve"
CLIENTS = ("urllib.request", "http.client", "httpx", "requests", "huggingface_hub")
# What clients' requests pass through, and the only files of it that open connections elsewhere.
SERVING = ("server", "service", "protocol", "text", "edge", "engine", "bridge", "distributor")
CALLING = {
    "server/registration.py",  # to --proxy-url
    # to nodes, which administrators name
    *(f"distributor/{name}.py" for name in ("app", "control", "health", "keys", "proxy")),
    "distributor/socket/upstream.py",
}
# Files without any of these are not looked into.
WORDS = re.compile(
    rf"{'|'.join(map(re.escape, CLIENTS))}|Environment|Template\(|jinja2|ClientSession|"
    r"_connection\(|subprocess|popen|os\.system"
)


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    texts = {path: path.read_text() for path in ROOT.rglob("*.py")}
    assert len(texts) > 300
    return [
        (path.relative_to(ROOT).as_posix(), node)
        for path, text in texts.items()
        if WORDS.search(text)
        for node in ast.walk(ast.parse(text))
    ]


def imported() -> Iterator[tuple[str, str]]:
    for name, node in nodes():
        if isinstance(node, ast.Import):
            yield from ((name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)


def attributes() -> Iterator[tuple[str, str]]:
    for name, node in nodes():
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield name, f"{node.value.id}.{node.attr}"


def serves(name: str) -> bool:
    return name.split("/")[0] in SERVING


def test_templates_are_sandboxed():
    made = {
        node.func.id
        for _, node in nodes()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert {name for name in made if name.endswith("Environment") or name == "Template"} == {
        "ImmutableSandboxedEnvironment"
    }
    assert [name for name, what in attributes() if what.startswith("jinja2.")] == []


def test_no_client_directs_a_request_elsewhere():
    """An `image_url` is refused where it is read; there is nothing here that could fetch it."""
    calling = {
        name
        for name, what in imported()
        if what == "aiohttp.ClientSession" or f"{what}.".startswith(tuple(f"{c}." for c in CLIENTS))
    }
    assert {name for name in calling if serves(name)} <= CALLING
    opened = ("create_connection", "open_connection", "ClientSession")
    assert [
        (name, what)
        for name, what in attributes()
        if serves(name) and what.partition(".")[2] in opened
    ] == []


def test_what_serves_runs_no_commands():
    """The engine's process is the one that it starts."""
    running = {name for name, what in imported() if what.startswith("subprocess") and serves(name)}
    assert running <= {"bridge/child.py"}
    assert [name for name, what in attributes() if what in ("os.system", "os.popen")] == []
