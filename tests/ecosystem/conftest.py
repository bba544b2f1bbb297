"""The default model, served in float32, and scripts that drive it with other projects' clients,
in the environment that `make test-clients` sets up."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmserve.errors import ModelError
from lmserve.weights import files
from tests.e2e.conftest import ServerProcess, serving

HERE = Path(__file__).parent
VENV = HERE.parents[1] / ".venv-clients"

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def clients_bin() -> Path:
    if not (VENV / "bin" / "lm_eval").exists():
        pytest.skip("make test-clients sets up the clients' environment")
    return VENV / "bin"


@pytest.fixture(scope="session")
def server(clients_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    try:
        files.resolve(None, files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR")))
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")
    data = str(tmp_path_factory.mktemp("data"))
    with serving("--dtype", "float32", "--session-len", "2048", "--data-dir", data) as server:
        yield server


@pytest.fixture
def offline(server: ServerProcess, tmp_path: Path) -> dict[str, str]:
    """The environment of a client that knows one server and no other."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("LMSERVE_")},
        "HOME": str(tmp_path),
        "OPENAI_API_KEY": "none",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
        "LLM_USER_PATH": str(tmp_path / "llm"),
    }


@pytest.fixture
def run(clients_bin: Path, server: ServerProcess, offline: dict[str, str]) -> Run:
    """Runs a script of `clients/` against the server; gives the JSON that it prints."""

    def run(script: str) -> Any:
        command = [str(clients_bin / "python"), str(HERE / "clients" / script), server.url]
        done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
