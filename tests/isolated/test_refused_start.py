"""Data directories that cannot be had: one message that says what to do, and exit status 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = ("-m", "lmserve", "serve", "api_server", "--engine", "mock", "--server-port", "0")

# As root too, the modes of files hold. Others cannot drop CAP_DAC_OVERRIDE (1), and need not.
OBEYS_MODES = """
import ctypes, os, sys
PR_CAPBSET_DROP = 24
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, 1, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def refusal(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", OBEYS_MODES, *COMMAND, "--data-dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (message,) = done.stderr.strip().splitlines()
    assert message.startswith(f"Error: cannot keep conversations in {folder}: ")
    assert message.endswith("; give a folder of this server's own with --data-dir")
    return message


def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o555)
    assert "Permission denied" in refusal(folder)


@pytest.mark.slow
def test_a_database_that_may_only_be_read(tmp_path: Path) -> None:
    for name in ("sessions.sqlite3.lock", "sessions.sqlite3"):
        (tmp_path / name).touch(mode=0o444)
    assert "Permission denied" in refusal(tmp_path)


@pytest.mark.slow
def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.touch()
    assert "File exists" in refusal(file)
    assert "Not a directory" in refusal(file / "below")
    assert "No such file" in refusal(Path("/proc/lmserve"))
