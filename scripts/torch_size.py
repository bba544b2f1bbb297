"""Prints how much pip would fetch for a torch that brings CUDA along, and how to avoid it.

    python scripts/torch_size.py torch==2.13.0

Prints nothing where pip is served a CPU build. Never fails a set-up: where pip cannot answer,
the install that follows says why. Standard library only, as it runs before anything is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")
REMEDY = """\
That is the CUDA build. For a CPU-only set-up stop here (Ctrl-C) and run
    make serve TORCH_INDEX_URL=<the CPU index named on PyTorch's install page>
Going on with the build above."""


def main(requirement: str) -> None:
    report = ask_pip(requirement)
    packages = {item["metadata"]["name"]: item["download_info"]["url"] for item in report}
    if not any(name.startswith(CUDA_PREFIXES) for name in packages):
        return
    sizes = [size_of(url) for url in packages.values()]
    known = sum(size for size in sizes if size is not None)
    at_least = "at least " if None in sizes else ""
    print(f"pip is about to fetch {requirement} as {len(packages)} packages, "
          f"{at_least}{known / 1e9:.1f} GB.\n{REMEDY}", flush=True)  # fmt: skip


def ask_pip(requirement: str) -> list[Any]:
    """The packages pip would install into an empty environment; empty where it cannot say."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--quiet", "--report", "-", requirement]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if answer.returncode != 0:
        return []
    installs: list[Any] = json.loads(answer.stdout)["install"]
    return installs


def size_of(url: str) -> int | None:
    """Bytes behind a file: or http(s): address; None where it is not told."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        path = Path(urllib.request.url2pathname(parts.path))
        return path.stat().st_size if path.exists() else None
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=10) as response:
            length = response.headers.get("Content-Length")
    except (OSError, ValueError):
        return None
    return int(length) if length else None


if __name__ == "__main__":
    main(sys.argv[1])
