"""How much KV cache there is: bytes of a block, and how many blocks fit."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from lmserve.errors import SettingsError

log = logging.getLogger(__name__)

DEFAULT_BYTES = 512 * 2**20
DEFAULT_SHARE = 0.25  # of what is available, when that is less


@dataclass(frozen=True, slots=True)
class CacheLayout:
    num_blocks: int
    block_size: int
    block_bytes: int
    max_model_len: int

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.block_bytes


def block_bytes(
    num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, element_bytes: int
) -> int:
    """Bytes of one block: keys and values, on every layer."""
    return 2 * num_layers * num_kv_heads * head_dim * block_size * element_bytes


def plan_layout(
    *,
    bytes_per_block: int,
    block_size: int,
    model_len: int,  # the longest context the model knows
    session_len: int | None,  # the setting
    share: float | None,  # the setting cache_max_entry_count
    available_bytes: int,
    step_bytes: int = 0,  # of those, what must be left to the largest step
    default_share: float = DEFAULT_SHARE,
    default_bytes: int | None = DEFAULT_BYTES,
    max_tokens: int | None = None,  # more than this can never be in use
    num_blocks: int | None = None,  # the setting: so many, whatever the memory
) -> CacheLayout:
    """As many blocks as the budget holds. A sequence of the longest length must fit: where it
    does not, the length asked for is refused, the model's own is shortened."""
    if session_len is not None and not 1 < session_len <= model_len:
        raise SettingsError(
            f"--session-len {session_len} is out of range; this model takes 2 to {model_len} tokens"
        )
    if share is not None and not 0 < share <= 1:
        raise SettingsError(f"--cache-max-entry-count {share} is out of range; use 0 < share <= 1")
    budget = _budget(available_bytes, default_share if share is None else share, step_bytes)
    if share is None and default_bytes is not None:
        budget = min(budget, default_bytes)
    if num_blocks is None:
        num_blocks = budget // bytes_per_block
        if max_tokens is not None:
            num_blocks = min(num_blocks, -(-max_tokens // block_size))
    budget = min(budget, num_blocks * bytes_per_block)
    max_model_len = session_len or model_len
    if num_blocks * block_size < max_model_len:
        _explain_shortage(num_blocks * block_size, max_model_len, session_len, budget)
        max_model_len = num_blocks * block_size
    return CacheLayout(num_blocks, block_size, bytes_per_block, max_model_len)


def _budget(available_bytes: int, share: float, step_bytes: int) -> int:
    budget, most = int(available_bytes * share), max(0, available_bytes - step_bytes)
    if budget <= most:
        return budget
    log.warning(
        "a step takes up to %.0f MiB of the %.0f MiB that are free, so the KV cache gets %.0f MiB "
        "and not %.0f; a lower --max-step-tokens or --max-batch-size leaves it more",
        *(size / 2**20 for size in (step_bytes, available_bytes, most, budget)),
    )
    return most


def _explain_shortage(fits: int, wanted: int, session_len: int | None, budget: int) -> None:
    place = f"the KV cache of {budget / 2**20:.0f} MiB holds {fits} tokens"
    if session_len is not None or fits < 2:
        raise SettingsError(
            f"{place}, fewer than the {wanted} asked for; give it more memory with "
            "--cache-max-entry-count or lower --session-len"
        )
    log.warning(
        "%s, so contexts are limited to that and not the model's %d; "
        "--cache-max-entry-count gives it more memory",
        place,
        wanted,
    )


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes this process may still take: the machine's, or less where a cgroup limits it."""
    return min(_machine_available(meminfo), *_cgroup_available(cgroup))


def _machine_available(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # not Linux: half of what is there
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError):
        return 4 * 2**30


def _cgroup_available(cgroup: Path) -> list[int]:
    """Of cgroup 2 and of 1; a list of one impossible number where there is no limit."""
    found = [2**62]
    for directory, limit_name, usage_name, prefix in (
        (cgroup, "memory.max", "memory.current", ""),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            limit = (directory / limit_name).read_text().strip()
            usage = int((directory / usage_name).read_text())
        except OSError:
            continue
        if limit != "max":
            used = max(0, usage - _page_cache(directory / "memory.stat", prefix))
            found.append(max(0, int(limit) - used))
    return found


def _page_cache(stat: Path, prefix: str) -> int:
    """Bytes that the kernel counts as used and gives back when asked: files it has read."""
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return 0
    names = (f"{prefix}inactive_file", f"{prefix}active_file")
    return sum(int(line[1]) for line in lines if line[0] in names)
