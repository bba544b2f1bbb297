"""`lmserve check_env`: what an answer to "what do you run on?" needs."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable

import click

from lmserve import __version__
from lmserve.bench.machine import cpu_info, memory_gib, num_cores, package_version

PACKAGES = (
    *("torch", "transformers", "tokenizers", "gguf", "aiohttp", "uvloop", "msgspec", "orjson"),
    *("llguidance", "huggingface-hub", "triton", "flash-attn", "gradio"),
)
TORCH_TIMEOUT_S = 60
# in a process of its own: importing torch takes seconds, and a broken one may crash
TORCH_PROBE = """
import json, torch
from lmserve.device.cuda import device_names
from lmserve.native.select import pick
print(json.dumps({
    "kernels": "{} ({})".format(*pick("auto")),
    "CUDA": torch.version.cuda or "not built in",
    "GPUs": device_names(),
    "torch threads": torch.get_num_threads(),
}))
"""

Facts = dict[str, object]


@click.command("check_env")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def check_env(as_json: bool) -> None:
    """Print versions and what this machine has."""
    facts: Facts = {}
    for probe in (_versions, _machine, _torch_at_work, _directories):
        facts |= _attempt(probe)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
        click.echo(f"{name:{width}}  {text}")


def _attempt(probe: Callable[[], Facts]) -> Facts:
    try:
        return probe()
    except Exception as error:  # it tells what is broken, so nothing may break it
        name = probe.__name__.strip("_").replace("_", " ")
        return {name: f"unknown ({type(error).__name__}: {' '.join(str(error).split())[:200]})"}


def _versions() -> Facts:
    return {
        "lmserve": __version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        **{name: package_version(name) for name in PACKAGES},
    }


def _machine() -> Facts:
    info, flags = cpu_info()
    gib = memory_gib()
    return {
        "system": platform.platform(),
        "CPU": info.get("model name", platform.processor() or platform.machine()),
        "CPU cores": num_cores(),
        "CPU features": flags,
        "memory": f"{gib:.1f} GiB" if gib else "unknown",
        "C++ compiler": next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "none"),
    }


def _torch_at_work() -> Facts:
    done = subprocess.run(
        [sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def _directories() -> Facts:
    from lmserve.cli.config import load
    from lmserve.service.store.file import data_dir
    from lmserve.weights.files import cache_dir

    settings = load().settings
    return {
        "models": str(cache_dir(settings.engine.cache_dir)),
        "conversations": settings.sessions.data_dir or str(data_dir()),
        "settings file": os.environ.get("LMSERVE_CONFIG", "none"),
    }
