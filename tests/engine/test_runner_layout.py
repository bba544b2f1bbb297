"""How much KV cache there is."""

from __future__ import annotations

import pytest

from lmserve.engine.cache.layout import available_memory, block_bytes, plan_layout
from lmserve.errors import SettingsError

MIB = 2**20
USUAL = {
    "bytes_per_block": MIB // 4,
    "block_size": 16,
    "model_len": 2048,
    "session_len": None,
    "share": None,
    "available_bytes": 8192 * MIB,
}


def test_the_default_is_the_lesser_of_512_mib_and_a_quarter():
    assert plan_layout(**USUAL).num_bytes == 512 * MIB
    assert plan_layout(**{**USUAL, "available_bytes": 400 * MIB}).num_bytes == 100 * MIB
    assert plan_layout(**USUAL, max_tokens=1600).num_blocks == 100


def test_a_share_is_of_what_is_available():
    layout = plan_layout(**{**USUAL, "share": 0.5})
    assert layout.num_bytes == 4096 * MIB
    with pytest.raises(SettingsError, match="cache-max-entry-count 1.5"):
        plan_layout(**{**USUAL, "share": 1.5})


def test_one_longest_sequence_must_fit(caplog):
    small = {**USUAL, "available_bytes": 40 * MIB}
    layout = plan_layout(**small)
    assert layout.max_model_len == layout.num_blocks * 16 == 640
    assert "--cache-max-entry-count" in caplog.text
    assert plan_layout(**{**small, "session_len": 640}).max_model_len == 640
    with pytest.raises(SettingsError, match="--session-len"):
        plan_layout(**{**small, "session_len": 641})
    with pytest.raises(SettingsError, match="holds 0 tokens"):
        plan_layout(**{**small, "available_bytes": 0})


def test_a_session_longer_than_the_model_is_refused():
    with pytest.raises(SettingsError, match="2 to 2048 tokens"):
        plan_layout(**{**USUAL, "session_len": 2049})


def test_a_block_is_keys_and_values_on_every_layer():
    assert block_bytes(30, 3, 64, 16, 4) == 2 * 30 * 3 * 64 * 16 * 4


def test_available_memory_is_limited_by_a_cgroup(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000 kB\nMemAvailable: 4000 kB\n")
    assert available_memory(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert available_memory(meminfo, tmp_path) == 2000000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 4000 * 1024


@pytest.mark.parametrize(
    ("directory", "limit", "usage", "prefix"),
    [
        ("", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_files_that_the_kernel_keeps_in_a_cgroup_are_not_used(
    tmp_path, directory, limit, usage, prefix
):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 4000 kB\n")
    group = tmp_path / directory
    group.mkdir(exist_ok=True)
    (group / limit).write_text("3000000\n")
    (group / usage).write_text("2900000\n")
    assert available_memory(meminfo, tmp_path) == 100000
    (group / "memory.stat").write_text(
        f"anon 100\nfile 2000000\n{prefix}inactive_file 1500000\n{prefix}active_file 400000\n"
    )
    assert available_memory(meminfo, tmp_path) == 2000000


def test_what_a_step_takes_is_left_to_it(caplog):
    given = {**USUAL, "share": 0.8, "available_bytes": 1000 * MIB}
    assert plan_layout(**given, step_bytes=200 * MIB).num_bytes == 800 * MIB
    assert not caplog.records
    assert plan_layout(**given, step_bytes=300 * MIB).num_bytes == 700 * MIB
    assert "up to 300 MiB of the 1000 MiB that are free" in caplog.text
    assert "gets 700 MiB and not 800" in caplog.text
    with pytest.raises(SettingsError, match="holds 0 tokens"):
        plan_layout(**given, step_bytes=2000 * MIB)
