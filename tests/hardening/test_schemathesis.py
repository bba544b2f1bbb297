"""Random requests of every documented shape, and of others, against a real server process: what
comes back is what the document says, and never a failure of the server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import serving

FUZZ_S = int(os.environ.get("FUZZ_S", "600"))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# They end what is tested: the server, or for a time its engine.
ENDING = ("/terminate", "/sleep")
# Told by design: what it was started without, no engine for now, a deadline that has passed.
CONFIG = """\
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 501, 503, 504]
"""


@pytest.mark.slow
@pytest.mark.timeout(FUZZ_S + 300)
def test_answers_are_as_the_document_says(tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with serving(
        "--engine", "mock", "--session-len", "256", "--enable-abort-handling",
        "--data-dir", str(tmp_path / "data"),
    ) as server:  # fmt: skip
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            *("--config-file", str(config), "run", f"{server.url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--max-time", str(FUZZ_S), "--no-color"),
            *("--continue-on-failure", "--request-timeout", "30"),
            *(word for path in ENDING for word in ("--exclude-path", path)),
        ]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=FUZZ_S + 240, check=False
        )
        found = done.stdout.partition("FAILURES")[2].partition("WARNINGS")[0]
        assert done.returncode == 0, found or done.stdout[-4000:] + done.stderr[-2000:]
