"""KV in files: what comes back is what was saved, and anything odd is refused."""

from __future__ import annotations

import os
import random
import stat
import struct
from pathlib import Path

import pytest

from lmserve.engine import kv_file, kv_store
from lmserve.engine.kv_file import Header, KVReader, KVWriter
from lmserve.errors import EngineError
from lmserve.messages import ControlReply, pack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from tests.engine.paged import Bench, PagedRunner, oracle

TEXT = list(range(1, 31))


def know(bench: Bench, tokens: list[int]) -> None:
    """The KV of all tokens is in the tree; the one after them was chosen and not run."""
    bench.submit(len(bench.answers), tokens, max_tokens=1)
    bench.drain()


def saved(path: Path, tokens: list[int] = TEXT) -> Path:
    bench = Bench()
    know(bench, tokens)
    reply = bench.save(tokens, path)
    assert reply.value == {"num_tokens": len(tokens), "num_bytes": path.stat().st_size}
    return path


def held(bench: Bench) -> int:
    return bench.core.cache.counts().held


def ask(bench: Bench, prompt: list[int]) -> int:
    """Answers as it has to; returns how much was found."""
    answer = bench.submit(len(bench.answers), prompt, max_tokens=4)
    bench.drain()
    assert answer.ids == oracle(prompt, SamplingParams(max_tokens=4)).ids
    return answer.num_cached_tokens


@pytest.mark.parametrize("block_size", [1, 3, 4, 7, 40])
@pytest.mark.parametrize("piece_bytes", [1, 100, 2**20])
def test_a_file_fits_any_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_size: int, piece_bytes: int
) -> None:
    monkeypatch.setattr(kv_store, "PIECE_BYTES", piece_bytes)
    path = saved(tmp_path / "a.kv")
    bench = Bench(PagedRunner(64, block_size))
    assert bench.restore(TEXT, path).value == {"num_tokens": 30, "num_known": 30}
    assert held(bench) == 0
    assert ask(bench, [*TEXT, 31, 32]) == 30
    again = tmp_path / "b.kv"
    bench.save(TEXT, again)
    assert again.read_bytes() == path.read_bytes()


def test_a_file_is_ours_alone_and_replaces_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    path.write_bytes(b"old")
    saved(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a.kv"]


def test_the_longest_known_beginning_is_saved(tmp_path: Path) -> None:
    bench, path = Bench(), tmp_path / "a.kv"
    assert bench.save(TEXT, path).value == {"num_tokens": 0, "num_bytes": 0}
    assert os.listdir(tmp_path) == []
    know(bench, TEXT[:13])
    assert bench.save(TEXT, path).value["num_tokens"] == 13
    assert bench.save(TEXT[:5], path).value["num_tokens"] == 5
    assert Bench().restore(TEXT, path).value["num_tokens"] == 5


def test_what_two_texts_share_is_restored(tmp_path: Path) -> None:
    path, bench = saved(tmp_path / "a.kv"), Bench()
    other = [*TEXT[:14], 40, 41, 42]
    assert bench.restore(other, path).value == {"num_tokens": 14, "num_known": 14}
    assert ask(bench, other) == 14
    assert "another text" in (bench.restore([9, 9], path).error or "")


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    path, bench = saved(tmp_path / "a.kv"), Bench()
    know(bench, TEXT[:10])
    assert bench.restore(TEXT, path).value == {"num_tokens": 20, "num_known": 30}
    assert bench.restore(TEXT, path).value == {"num_tokens": 0, "num_known": 30}
    assert bench.restore(TEXT[:7], path).value == {"num_tokens": 0, "num_known": 7}
    assert ask(bench, [*TEXT, 31]) == 30


def test_without_a_prefix_cache_nothing_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.kv")
    bench = Bench(settings=EngineSettings(prefix_cache=False))
    know(bench, TEXT)
    assert bench.restore(TEXT, path).value == {"num_tokens": 0, "num_known": 0}
    assert bench.save(TEXT, path).value["num_tokens"] == 0


# --- damage -----------------------------------------------------------------------------------


def refused(path: Path, why: str = "", runner: PagedRunner | None = None) -> None:
    bench = Bench(runner)
    reply = bench.restore(TEXT, path)
    assert reply.error is not None and str(path) in reply.error and why in reply.error
    assert bench.core.cache.counts().free == bench.runner.num_blocks
    assert ask(bench, [*TEXT, 31]) == 0
    assert ask(bench, list(range(40, 49)) * 5) == 0  # in blocks that held what was refused


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.kv")
    whole, source = path.read_bytes(), random.Random(5)
    places = {
        *range(40),
        *source.sample(range(len(whole)), 60),
        *range(len(whole) - 33, len(whole)),
    }
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        refused(path)


def test_any_cut_or_longer_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.kv")
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole + b"x")
    refused(path, "bytes, not")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.kv")
    reader = KVReader(path)
    reader.open("paged", 8)
    os.truncate(path, path.stat().st_size - 50)
    with pytest.raises(EngineError, match="ends too soon"):
        reader.verify()
    reader.close()


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"\xff\xff\xff\xff", "its header would have"),
        (struct.pack("<I", 3) + b"\x93\x01\x02", "is damaged"),
        (struct.pack("<I", 1) + b"\xc1", "is damaged"),
        (struct.pack("<I", 0), "is damaged"),
    ],
)
def test_a_header_that_says_nonsense_is_refused(tmp_path: Path, header: bytes, why: str) -> None:
    path = tmp_path / "a.kv"
    path.write_bytes(kv_file.MAGIC + header + bytes(100))
    refused(path, why)


def write(path: Path, header: Header) -> None:
    file = KVWriter(path)
    file.open(header)
    file.write(bytes(header.num_tokens * header.token_bytes))
    file.commit()


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    write(path, Header.of("another", 8, TEXT))
    refused(path, "another model")
    write(path, Header.of("paged", 16, TEXT))
    refused(path, "another model")
    write(path, Header.of("paged", 8, []))
    refused(path, "token ids are cut")
    write(path, Header(fingerprint="paged", token_bytes=8, token_ids=bytes(7)))
    refused(path, "token ids are cut")


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.kv")
    (tmp_path / "link.kv").symlink_to(path)
    refused(tmp_path / "link.kv", "cannot read")
    os.mkfifo(tmp_path / "pipe.kv")
    refused(tmp_path / "pipe.kv", "not a regular file")
    (tmp_path / "folder.kv").mkdir()
    refused(tmp_path / "folder.kv", "not a regular file")
    refused(tmp_path / "none.kv", "No such file")


# --- writing ------------------------------------------------------------------------------------


def test_a_save_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    know(bench, TEXT)
    assert "No such file" in (bench.save(TEXT, tmp_path / "no" / "a.kv").error or "")
    (tmp_path / "a.kv").mkdir()  # the last moment: a file cannot take a folder's name
    assert "directory" in (bench.save(TEXT, tmp_path / "a.kv").error or "")
    assert os.listdir(tmp_path) == ["a.kv"]
    assert held(bench) == 0
    assert bench.save(TEXT, tmp_path / "b.kv").error is None


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    file = KVWriter(Path("/dev/full"))
    file._file = open("/dev/full", "wb", buffering=0)
    file._name = str(tmp_path / "gone")
    with pytest.raises(EngineError, match="No space left"):
        file.write(b"x")
    assert file._file is None


def test_a_header_is_never_of_other_tokens(tmp_path: Path) -> None:
    file = KVWriter(tmp_path / "a.kv")
    file.open(Header.of("paged", 8, TEXT))
    file.write(bytes(8))
    with pytest.raises(AssertionError):
        file.commit()
    file.discard()
    file.discard()
    assert os.listdir(tmp_path) == []


# --- beside requests ----------------------------------------------------------------------------


def begin(bench: Bench, verb: str, path: Path, num_chores: int) -> list[ControlReply]:
    assert bench.control(verb, token_ids=pack_ids(TEXT), path=str(path)) is None
    return [reply for _ in range(num_chores) for reply in bench.core.do_chores()]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_store, "PIECE_BYTES", 1)


@pytest.mark.parametrize("num_chores", range(16))
@pytest.mark.usefixtures("small_pieces")
def test_shutdown_in_the_middle_leaves_nothing(tmp_path: Path, num_chores: int) -> None:
    path = saved(tmp_path / "a.kv")
    bench = Bench()
    know(bench, TEXT)
    assert begin(bench, "save", tmp_path / "b.kv", min(num_chores, 9)) == []
    bench.core.close()
    assert held(bench) == 0
    assert os.listdir(tmp_path) == ["a.kv"]
    bench = Bench()
    if begin(bench, "restore", path, num_chores) == []:
        bench.core.kv.close()
        assert bench.core.cache.counts().free == 64
    assert held(bench) == 0
    assert ask(bench, [*TEXT, 31]) in (0, 30)


@pytest.mark.parametrize("verb", ["save", "restore"])
@pytest.mark.usefixtures("small_pieces")
def test_a_request_that_needs_all_blocks_takes_them(tmp_path: Path, verb: str) -> None:
    path = saved(tmp_path / "a.kv")
    bench = Bench(PagedRunner(8, 4))
    if verb == "save":
        know(bench, TEXT)
    target = path if verb == "restore" else tmp_path / "b.kv"
    assert begin(bench, verb, target, 6) == []
    assert held(bench) > 1
    assert ask(bench, list(range(40, 49)) * 3) == 0
    (reply,) = bench.finish_chores()
    assert "no room left" in (reply.error or "")
    assert os.listdir(tmp_path) == ["a.kv"]
    assert held(bench) == 0


def test_a_restore_takes_nothing_from_those_that_run_and_from_pins(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.kv")
    bench = Bench(PagedRunner(12, 4))
    know(bench, [40] * 8)
    assert bench.control("pin", key="a", token_ids=pack_ids([40] * 8)) is not None
    running = bench.submit(99, [41] * 13, max_tokens=20)
    bench.step()
    assert bench.restore(TEXT, path).value == {"num_tokens": 20, "num_known": 20}
    assert bench.core.cache.counts().free == 1  # 12, less 2 pinned, 4 running and 5 restored
    bench.drain()
    assert running.ids == oracle([41] * 13, SamplingParams(max_tokens=20)).ids
    assert bench.core.cache.counts().pinned == 2


def test_what_a_failed_request_shares_is_not_saved(tmp_path: Path) -> None:
    bench = Bench(PagedRunner(32, 4, vocab_size=51, poison=50), EngineSettings(max_step_tokens=8))
    know(bench, TEXT)
    assert begin(bench, "save", tmp_path / "a.kv", 1) == []
    bad = bench.submit(99, [*TEXT[:12], 50, 1], max_tokens=2)
    while bench.core.has_work():
        bench.step()
    assert bad.finish == "error"
    (reply,) = bench.finish_chores()
    assert reply.error is not None and "not saved" in reply.error
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("small_pieces")
def test_a_restore_goes_before_the_saves_that_wait(tmp_path: Path) -> None:
    path, bench = saved(tmp_path / "a.kv"), Bench()
    know(bench, [40] * 9)
    saves = [tmp_path / "b.kv", tmp_path / "c.kv"]
    for to in saves:
        bench.core.kv.save(1, pack_ids([40] * 9), str(to))
    bench.core.do_chores()
    begin(bench, "restore", path, 0)
    assert [reply.id for reply in bench.finish_chores()] == [1, 7, 1]
    assert all(to.exists() for to in saves)


def test_saving_makes_nothing_look_newly_used(tmp_path: Path) -> None:
    bench = Bench(PagedRunner(8, 4))
    know(bench, [40] * 12)
    know(bench, [41] * 12)
    bench.save([40] * 12, tmp_path / "a.kv")
    know(bench, [42] * 12)
    assert bench.save([40] * 12, tmp_path / "a.kv").value["num_tokens"] < 12
    assert bench.save([41] * 12, tmp_path / "a.kv").value["num_tokens"] == 12


# --- pins ---------------------------------------------------------------------------------------


def pin(bench: Bench, key: str, tokens: list[int]) -> tuple[int, int, int]:
    reply = bench.control("pin", key=key, token_ids=pack_ids(tokens))
    assert reply is not None and reply.error is None
    bench.core.cache.check()
    return reply.value["num_tokens"], reply.value["num_blocks"], reply.value["pinned_blocks"]


def test_a_session_has_one_pin_and_shared_blocks_count_once() -> None:
    bench = Bench()
    know(bench, [*TEXT[:8], 40, 41, 42, 43])
    know(bench, TEXT[:14])
    assert pin(bench, "a", TEXT) == (14, 4, 4)
    assert pin(bench, "b", [*TEXT[:8], 40, 41, 42]) == (11, 3, 5)
    assert pin(bench, "a", TEXT[:4]) == (4, 1, 3)
    assert pin(bench, "b", [7, 7]) == (0, 0, 1)
    bench.submit(99, TEXT, max_tokens=2)
    bench.step()
    assert pin(bench, "c", TEXT[:4]) == (4, 1, 1)  # in use, and kept all the same
    bench.drain()
    for key in ("a", "b", "c", "never"):
        assert bench.control("unpin", key=key) is not None
    assert bench.core.cache.counts().pinned == 0
    assert bench.core.cache.clear() > 0
    assert bench.core.cache.counts().free == 64


def test_a_broken_pin_is_no_longer_counted() -> None:
    bench = Bench(PagedRunner(8, 4))
    know(bench, TEXT[:12])
    assert pin(bench, "a", TEXT) == (12, 3, 3)
    assert ask(bench, [*range(40, 49)] * 3) == 0
    assert pin(bench, "b", [7]) == (0, 0, 0)
    assert pin(bench, "a", TEXT)[0] < 12


@pytest.mark.parametrize("args", [{}, {"key": 3}, {"token_ids": "text"}, {"token_ids": b"abc"}])
def test_a_control_with_other_arguments_is_an_error(args: dict[str, object]) -> None:
    bench = Bench()
    for verb in ("pin", "save", "restore"):
        reply = bench.control(verb, **args)
        assert reply is not None and reply.error
    assert not bench.core.kv.has_jobs
