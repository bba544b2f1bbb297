"""How long the weights of a model take from their files to the device: mapped and copied, as it
was; streamed, as it is; and streamed to a device that takes no time, which is the most a host
can give. Each round is a process of its own; the ways alternate. The time is of a second pass,
which finds the device's memory touched already.

    .venv/bin/python bench/loading.py [--gib 3] [--rounds 3] [--device cpu] [--cold] [--threads 2]

The model is written for the measurement, in shards of 1 GiB, and removed. On `cpu` the device's
memory is the host's: what is copied to it is copied by the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

from lmserve.device.select import device_for
from lmserve.device.staging import HostStaging
from lmserve.weights.safetensors import SafetensorsCheckpoint
from lmserve.weights.stream import WeightStream

WAYS = ("mapped", "streamed", "read alone")
SHARD_BYTES = 2**30
HIDDEN, INNER, KV, VOCAB = 4096, 12288, 1024, 16384
QKV = (("q", HIDDEN), ("k", KV), ("v", KV))
# the matrices of a layer, those that are merged together
LAYER = (
    {f"self_attn.{name}_proj": (rows, HIDDEN) for name, rows in QKV},
    {"self_attn.o_proj": (HIDDEN, HIDDEN)},
    {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN)},
    {"mlp.down_proj": (HIDDEN, INNER)},
)
LAYER_BYTES = 2 * sum(rows * columns for group in LAYER for rows, columns in group.values())
LOADERS = 4  # threads that loaded layers side by side
Group = dict[str, tuple[int, int]]
# memory that was freed is taken again as it is, as CUDA's is
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gib", type=float, default=3, help="size of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", help="of the model, on the device")
    parser.add_argument("--threads", type=int, help="readers; default: lmserve's own choice")
    parser.add_argument("--cold", action="store_true", help="forget the files before each round")
    parser.add_argument("--directory", type=Path, help="where the model is written for a while")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measure(asked)))
        return 0
    if shutil.disk_usage(asked.directory or tempfile.gettempdir()).free < 2 * asked.gib * 2**30:
        raise SystemExit("not enough disk space: give --directory or a smaller --gib")
    with tempfile.TemporaryDirectory(dir=asked.directory, prefix="lmserve-loading-") as folder:
        write(Path(folder), asked.gib)
        compare(asked, folder)
    return 0


def compare(asked: argparse.Namespace, folder: str) -> None:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    command = [sys.executable, __file__, *sys.argv[1:], "--directory", folder]
    for turn in range(1 + asked.rounds):  # the first warms up
        for way in WAYS:
            done = subprocess.run(
                [*command, "--way", way],
                check=True,
                stdout=subprocess.PIPE,
                env={**os.environ, **MALLOC},
            )
            if turn:
                found[way].append(json.loads(done.stdout))
    for way, rounds in found.items():
        seconds, cpu_seconds, gib, beside = (
            min(each[what] for each in rounds)
            for what in ("seconds", "cpu_seconds", "gib", "beside_mib")
        )
        print(
            f"{way:10}  {gib / seconds:6.2f} GiB/s  {cpu_seconds / gib:5.2f} CPU s/GiB  "
            f"{beside:6.0f} MiB of host memory beside the weights"
        )


def measure(asked: argparse.Namespace) -> dict[str, float]:
    device, dtype = torch.device(asked.device), getattr(torch, asked.dtype)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # its context is not what is measured
    torch.set_num_threads(1)  # as lmserve does: copies run side by side
    before = peak_bytes()
    load(asked, device, dtype)
    if asked.cold:
        forget(asked.directory)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    num_bytes = load(asked, device, dtype)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    on_host = 0 if device.type == "cuda" or asked.way == "read alone" else num_bytes
    beside = peak_bytes() - before - on_host
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "gib": num_bytes / 2**30,
        "beside_mib": beside / 2**20,
    }


def load(asked: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> int:
    """Returns how many bytes; they are freed at once."""
    checkpoint = SafetensorsCheckpoint(asked.directory, asked.directory)
    if asked.way == "mapped":
        held = mapped(checkpoint, device, dtype)
    else:
        stage = Dropped if asked.way == "read alone" else device_for(device).staging
        held = streamed(checkpoint, device, dtype, WeightStream(stage, asked.threads))
    device_for(device).synchronize()
    return sum(each.nbytes for each in held)


def forget(folder: Path) -> None:
    """Out of the system's memory."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Dropped(HostStaging):
    def send(self, num_bytes: int, dtype: torch.dtype, target: torch.Tensor) -> None:
        pass


def mapped(
    checkpoint: SafetensorsCheckpoint, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """What was done before weights were streamed."""

    def merge(group: Group) -> torch.Tensor:
        parts = [checkpoint.get(f"{name}.weight").to(device, dtype, copy=True) for name in group]
        return torch.cat(parts)

    with ThreadPoolExecutor(LOADERS) as pool:
        return list(pool.map(merge, groups(checkpoint)))


def streamed(
    checkpoint: SafetensorsCheckpoint,
    device: torch.device,
    dtype: torch.dtype,
    stream: WeightStream,
) -> list[torch.Tensor]:
    held = []
    for group in groups(checkpoint):
        rows = [shape[0] for shape in group.values()]
        columns = next(iter(group.values()))[1]
        merged = torch.empty(sum(rows), columns, dtype=dtype, device=device)
        for name, part in zip(group, torch.split(merged, rows), strict=True):
            stored = checkpoint.stored(f"{name}.weight")
            assert stored is not None
            stream.add(stored, part)
        held.append(merged)
    stream.run()
    return held


def groups(checkpoint: SafetensorsCheckpoint) -> Iterator[Group]:
    num_layers = checkpoint.config["num_hidden_layers"]
    for layer in range(num_layers):
        for group in LAYER:
            yield {f"model.layers.{layer}.{name}": shape for name, shape in group.items()}
    yield {"model.embed_tokens": (VOCAB, HIDDEN)}


def peak_bytes() -> int:
    """Of this process alone: what getrusage says begins with the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell the peak of a process's memory")


def write(folder: Path, gib: float) -> None:
    num_layers = max(1, round(gib * 2**30 / LAYER_BYTES))
    config = {"architectures": ["Synthetic"], "num_hidden_layers": num_layers}
    (folder / "config.json").write_text(json.dumps(config))
    noise = torch.empty(VOCAB, INNER, dtype=torch.bfloat16).normal_(0, 0.02)
    shard = {"model.embed_tokens.weight": noise[:, :HIDDEN].clone()}
    for layer in range(num_layers):
        for group in LAYER:
            for name, shape in group.items():
                shard[f"model.layers.{layer}.{name}.weight"] = noise[: shape[0], : shape[1]].clone()
        if sum(each.nbytes for each in shard.values()) > SHARD_BYTES or layer == num_layers - 1:
            number = len(list(folder.glob("*.safetensors")))
            save_file(shard, folder / f"model-{number:05}.safetensors")
            shard = {}


if __name__ == "__main__":
    sys.exit(main())
