from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lmserve.service.store.store import SessionKey
from lmserve.service.warm.kv_files import KvFiles, name_of

A, B, C = (SessionKey("", id) for id in "abc")


def opened(folder: Path, max_bytes: int = 100) -> KvFiles:
    files = KvFiles(folder, max_bytes)
    files.open()
    return files


def write(files: KvFiles, key: SessionKey, num_bytes: int) -> bool:
    """As the engine does."""
    if not files.make_room(key, num_bytes):
        return False
    files.path(key).write_bytes(bytes(num_bytes))
    files.written(key)
    return True


def held(files: KvFiles) -> set[SessionKey]:
    on_disk = {path.stem for path in files.path(A).parent.iterdir()}
    assert on_disk == set(files.names())
    return {key for key in (A, B, C) if files.has(key)}


def test_only_the_server_may_look(tmp_path: Path) -> None:
    files = opened(tmp_path / "kv")
    write(files, A, 10)
    assert stat.S_IMODE((tmp_path / "kv").stat().st_mode) == 0o700
    assert stat.S_IMODE(files.path(A).stat().st_mode) == 0o600


def test_what_was_unused_longest_makes_room(tmp_path: Path) -> None:
    files = opened(tmp_path)
    for key in (A, B):
        assert write(files, key, 40)
    files.used(A)
    assert write(files, C, 40)
    assert held(files) == {A, C}
    assert files.num_bytes == 80


def test_a_file_that_is_replaced_makes_room_itself(tmp_path: Path) -> None:
    files = opened(tmp_path)
    for key, num_bytes in ((A, 60), (B, 40), (A, 60)):
        assert write(files, key, num_bytes)
    assert held(files) == {A, B}
    assert files.num_bytes == 100


def test_what_can_never_fit_costs_nobody(tmp_path: Path) -> None:
    files = opened(tmp_path)
    write(files, A, 100)
    assert not write(files, B, 101)
    assert held(files) == {A}


def test_the_next_server_finds_them_in_their_order(tmp_path: Path) -> None:
    files = opened(tmp_path)
    for age, key in enumerate((C, A, B)):
        write(files, key, 30)
        os.utime(files.path(key), (1000 - age, 1000 - age))
    files.path(A).with_name(f".{files.path(A).name}.x.tmp").write_bytes(b"half")
    files = opened(tmp_path)
    assert held(files) == {A, B, C}
    assert write(files, B, 60)  # its old 30 make room, and so does the oldest other one
    assert held(files) == {B, C}


def test_a_fork_has_the_file_of_the_other_whatever_becomes_of_that(tmp_path: Path) -> None:
    files = opened(tmp_path)
    write(files, A, 10)
    files.link(A, B)
    files.link(C, B)  # has none
    files.remove(A)
    assert held(files) == {B}
    assert files.path(B).stat().st_size == 10


def test_files_of_no_session_go_and_only_those_that_were_meant(tmp_path: Path) -> None:
    files = opened(tmp_path)
    for key in (A, B, C):
        write(files, key, 10)
    assert files.remove_others([name_of(A), name_of(B), "gone"], [A]) == 1
    assert held(files) == {A, C}


def test_what_is_no_file_of_ours_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    write(opened(folder), A, 10)
    outside = tmp_path / "outside"
    outside.write_bytes(b"other")
    (folder / f"{name_of(B)}.kv").symlink_to(outside)
    (folder / f"{name_of(C)}.kv").symlink_to(tmp_path / "nowhere")
    (folder / "d.kv").mkdir()
    (folder / ".d.kv.1.tmp").mkdir()
    files = opened(folder)
    assert files.names() == [name_of(A)]
    assert outside.read_bytes() == b"other"
    assert write(files, B, 10)


def test_a_file_that_somebody_took_away_is_no_error(tmp_path: Path) -> None:
    files = opened(tmp_path)
    write(files, A, 10)
    files.path(A).unlink()
    files.remove(A)
    assert held(files) == set()
    with pytest.raises(OSError, match="No such file"):
        files.written(B)


def test_owners_never_meet() -> None:
    assert name_of(SessionKey("a", "b")) != name_of(SessionKey("", "ab"))
    assert name_of(SessionKey("\ud800", "b"))  # half of a pair is an owner as well
