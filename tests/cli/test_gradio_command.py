"""What `lmserve serve gradio` refuses. Its page is tested in tests/browser/test_gradio.py."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from lmserve.cli.gradio import is_address
from lmserve.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:23333", True),
        ("https://example.org/v1", True),
        ("localhost:23333", True),
        ("[::1]:23333/", True),
        ("./workspace", False),
        ("internlm/internlm-chat-7b", False),
        ("ftp://localhost", False),
        (":23333", False),
    ],
)
def test_what_is_an_address(url: str, expected: bool):
    assert is_address(url) is expected


def test_a_model_is_refused_with_the_remedy():
    result = CliRunner().invoke(cli, ["serve", "gradio", "./workspace"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "start `lmserve serve api_server` and give its URL" in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")  # restored after the command has set it
    result = CliRunner().invoke(cli, ["serve", "gradio", "localhost:1"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: gradio is not installed: pip install 'lmserve[gradio]'\n"


@pytest.mark.skipif(find_spec("gradio") is None, reason="the extra gradio is not installed")
def test_no_server_is_one_line(unused_tcp_port: int):
    command = ["serve", "gradio", f"127.0.0.1:{unused_tcp_port}", "--server_port", "0"]
    result = subprocess.run(
        [sys.executable, "-m", "lmserve", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ") and "no server answers there" in result.stderr
    assert result.stderr.count("\n") == 1
