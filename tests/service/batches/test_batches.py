"""Batches: every line once, whatever happens."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from lmserve.atomic import write_atomic
from lmserve.errors import (
    EngineDied,
    EngineError,
    EngineUnavailable,
    FileMissing,
    InvalidField,
    Overloaded,
    TextTooSlow,
)
from lmserve.service.batches import run as runs
from lmserve.service.batches import shop
from lmserve.service.batches.batches import KEEP_S, MAX_OPEN, BatchAsk
from lmserve.service.batches.results import Sheet
from tests.service.batches.clerk import ENDPOINT, Clerk, Echo, serving, until

TEXTS = [f"line {number}" for number in range(30)]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def clerk(tmp_path: Path, echo: Echo) -> AsyncIterator[Clerk]:
    async with serving(tmp_path, echo) as made:
        yield made


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PAUSE_S", "MAX_PAUSE_S", "DISK_PAUSE_S", "WRITE_EVERY_S"):
        monkeypatch.setattr(runs, name, 0.01)


async def test_so_many_lines_run_together(tmp_path: Path, echo: Echo) -> None:
    async with serving(tmp_path, echo, batch_concurrency=3) as clerk:
        both = [await clerk.begin(TEXTS), await clerk.begin(["other"])]
        for batch, texts in zip(both, (TEXTS, ["other"]), strict=True):
            ended = await clerk.ended(batch)
            assert (ended.status, ended.num_completed) == ("completed", len(texts))
            assert sorted(clerk.told(ended.output_file_id)) == sorted(texts)
    assert echo.most_running == 3
    assert set(echo.asked.values()) == {1}


async def test_a_later_server_goes_on(tmp_path: Path, echo: Echo) -> None:
    echo.held = set(TEXTS[7:])
    async with serving(tmp_path, echo) as clerk:
        batch = await clerk.begin(TEXTS)
        await until(lambda: batch.num_completed == 7)
    echo.held = set()
    async with serving(tmp_path, echo) as clerk:
        ended = await clerk.ended(batch)
        assert (ended.num_completed, ended.num_lines, ended.tokens.output) == (30, 30, 30)
        assert sorted(clerk.told(ended.output_file_id)) == sorted(TEXTS)
        kept = clerk.batches.files.list("me")
    assert [echo.asked[text] for text in TEXTS[:7]] == [1] * 7
    async with serving(tmp_path, echo) as clerk:
        assert clerk.batches.files.list("me") == kept
        assert clerk.batches.list("me") == [ended]


@pytest.mark.parametrize("text", ["a line", ""])
async def test_nobody_hears_of_an_end_that_is_not_on_disk(
    tmp_path: Path, echo: Echo, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_before = []

    def write(path: Path, data: bytes, mode: int) -> None:
        """What is told of the batch while it is written to be at its end."""
        if b'"ended":null' not in data:
            told_before.append(batch.status)
        write_atomic(path, data, mode)

    monkeypatch.setattr(shop, "write_atomic", write)
    async with serving(tmp_path, echo) as clerk:
        batch = await clerk.begin([text] if text else [])
        ended = await clerk.ended(batch)
        assert ended.status == ("completed" if text else "failed")
    assert told_before == (["finalizing"] if text else ["validating"])


@pytest.mark.parametrize("torn", [b"", b"{", b'{"id": "x", "custom_id"', b"\0\0\0\n", b"[]\n"])
async def test_what_a_killed_server_left_is_read(tmp_path: Path, echo: Echo, torn: bytes) -> None:
    """As it is on disk while the server runs, with a torn end."""
    echo.held, echo.failures = set(TEXTS[9:]), {TEXTS[0]: [EngineError("bad")]}
    left = tmp_path / "left"
    async with serving(tmp_path / "first", echo) as clerk:
        batch = await clerk.begin(TEXTS)
        await until(lambda: batch.num_completed + batch.num_failed == 9)
        shutil.copytree(tmp_path / "first", left)
    for kind in ("output", "errors"):
        path = left / "batches" / f"{batch.id}.{kind}.jsonl"
        path.write_bytes(path.read_bytes() + torn)
    (left / "files" / "file-half.part").write_bytes(b"x")
    echo.held = set()
    async with serving(left, echo) as clerk:
        ended = await clerk.ended(batch)
        told = clerk.told(ended.output_file_id) + clerk.told(ended.error_file_id)
        assert sorted(told) == sorted(TEXTS)
        assert (ended.num_completed, ended.num_failed) == (29, 1)
        assert clerk.told(ended.error_file_id) == [TEXTS[0]]
        assert list((left / "batches").glob("*.jsonl")) == []
        assert not (left / "files" / "file-half.part").exists()
    assert [echo.asked[text] for text in TEXTS[:9]] == [1] * 9


@pytest.mark.parametrize("place", ["before", "between", "after"])
async def test_a_server_that_died_as_a_batch_ended(tmp_path: Path, echo: Echo, place: str) -> None:
    """Before its results became a file, between the two steps of that, or after it."""
    async with serving(tmp_path, echo) as clerk:
        batch = await clerk.ended(await clerk.begin(TEXTS))
    files, batches = tmp_path / "files", tmp_path / "batches"
    batch.status, batch.ended = "finalizing", None
    (batches / f"{batch.id}.json").write_bytes(msgspec.json.encode(batch))
    if place != "after":
        (files / f"{batch.output_file_id}").rename(batches / f"{batch.id}.output.jsonl")
    if place == "before":
        (files / f"{batch.output_file_id}.json").unlink()
    async with serving(tmp_path, echo) as clerk:
        ended = await clerk.ended(batch)
        assert (ended.status, ended.num_completed) == ("completed", 30)
        assert sorted(clerk.told(ended.output_file_id)) == sorted(TEXTS)
        sizes = [record.num_bytes for record in clerk.batches.files.list("me")]
        assert clerk.batches.files.num_bytes == sum(sizes)
    assert set(echo.asked.values()) == {1}


async def test_what_is_too_late_is_told_of_each_line(clerk: Clerk, echo: Echo) -> None:
    echo.held = set(TEXTS[5:])
    batch = await clerk.begin(TEXTS, completion_window="1h")
    await until(lambda: batch.num_completed == 5)
    clerk.now_s += 3599
    await clerk.batches.sweep()
    assert batch.status == "in_progress"
    clerk.now_s += 1
    await clerk.batches.sweep()
    ended = await clerk.ended(batch)
    assert (ended.status, ended.num_completed, ended.num_failed) == ("expired", 5, 25)
    assert sorted(clerk.told(ended.output_file_id)) == sorted(TEXTS[:5])
    assert sorted(clerk.told(ended.error_file_id)) == sorted(TEXTS[5:])
    assert ended.error_file_id is not None
    text = clerk.batches.files.path(ended.error_file_id).read_text()
    assert text.count('"error":{"code":"batch_expired"') == 25
    assert text.count('"response":null') == 25


async def test_a_batch_cancelled_before_it_begins(clerk: Clerk, echo: Echo) -> None:
    clerk.at_leisure = False
    batch = await clerk.begin(TEXTS)
    await clerk.batches.cancel("me", batch.id)
    ended = await clerk.ended(batch)
    assert (ended.status, ended.output_file_id, ended.error_file_id) == ("cancelled", None, None)
    assert not echo.asked


async def test_lines_wait_while_others_do(clerk: Clerk, echo: Echo) -> None:
    clerk.at_leisure = False
    batch = await clerk.begin(TEXTS)
    await until(lambda: batch.status == "in_progress")
    assert not echo.asked
    clerk.at_leisure = True
    assert (await clerk.ended(batch)).num_completed == 30


async def test_lines_are_tried_again(clerk: Clerk, echo: Echo, no_pauses: None) -> None:
    died = [EngineDied("died") for _ in range(3)]
    echo.failures = {
        "busy": [Overloaded("full")] * 5 + [EngineUnavailable("loading")] * 5,
        "twice": died[:2],
        "thrice": died,
        "slow": [TextTooSlow("its template")] * 9,
        "bug": [ZeroDivisionError()],
        "wrong": [InvalidField("no")],
    }
    ended = await clerk.ended(await clerk.begin([*echo.failures, "fine"]))
    assert sorted(clerk.told(ended.output_file_id)) == ["busy", "fine", "twice"]
    assert sorted(clerk.told(ended.error_file_id)) == ["bug", "slow", "thrice", "wrong"]
    assert dict(echo.asked) == {
        "busy": 11, "twice": 3, "thrice": 3, "slow": 3, "bug": 1, "wrong": 1, "fine": 1,
    }  # fmt: skip


async def test_a_full_disk_makes_it_wait(
    clerk: Clerk, echo: Echo, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    append, num_failures = Sheet.append, 0

    def half(sheet: Sheet, data: bytes) -> None:
        nonlocal num_failures
        num_failures += 1
        if num_failures <= 3:
            append(sheet, data[: len(data) // 2])  # the end of the disk
            raise OSError(28, "No space left on device")
        append(sheet, data)

    monkeypatch.setattr(Sheet, "append", half)
    ended = await clerk.ended(await clerk.begin(TEXTS))
    assert (ended.status, ended.num_completed) == ("completed", 30)
    assert sorted(clerk.told(ended.output_file_id)) == sorted(TEXTS)
    assert num_failures > 3
    assert set(echo.asked.values()) == {1}


async def test_results_over_the_room_for_files_wait(
    tmp_path: Path, echo: Echo, no_pauses: None
) -> None:
    async with serving(tmp_path, echo, max_files_bytes=8192) as clerk:
        other = await clerk.upload(b"x" * 5000, "user_data")
        batch = await clerk.begin(TEXTS[:12])
        await until(lambda: echo.asked)
        await clerk.batches.files.delete("me", other)
        assert (await clerk.ended(batch)).num_completed == 12


async def test_the_file_that_is_read_stays(clerk: Clerk, echo: Echo) -> None:
    echo.held = set(TEXTS)
    batch = await clerk.begin(TEXTS)
    clerk.now_s += 40 * 86400
    await clerk.batches.files.sweep()
    assert clerk.batches.files.has(batch.input_file_id)
    await clerk.batches.cancel("me", batch.id)
    await clerk.ended(batch)
    await clerk.batches.files.sweep()
    assert not clerk.batches.files.has(batch.input_file_id)
    with pytest.raises(FileMissing):
        clerk.batches.files.get("me", batch.input_file_id)


async def test_old_batches_and_their_files_are_forgotten(clerk: Clerk) -> None:
    batch = await clerk.ended(await clerk.begin(["a"]))
    clerk.now_s += KEEP_S
    await clerk.batches.sweep()
    assert clerk.batches.list("me") == []
    assert clerk.batches.files.list("me") == []
    assert clerk.batches.files.num_bytes == 0
    assert not list((clerk.folder / "batches").iterdir())
    assert not list((clerk.folder / "files").iterdir())
    assert batch.status == "completed"


async def test_so_many_that_have_ended_are_kept(tmp_path: Path, echo: Echo) -> None:
    async with serving(tmp_path, echo, max_batches=2) as clerk:
        begun = []
        for text in "abcd":
            begun.append(await clerk.begin([text]))
            await clerk.ended(begun[-1])
            clerk.now_s += 1
        await clerk.batches.sweep()
        assert clerk.batches.list("me") == begun[:1:-1]
        assert len(list((clerk.folder / "batches").glob("*.json"))) == 2
        assert len(clerk.batches.files.list("me")) == 8  # which have their own limits


async def test_a_file_that_is_gone_fails_its_batch(tmp_path: Path, echo: Echo) -> None:
    echo.held = {"a"}
    async with serving(tmp_path, echo) as clerk:
        batch = await clerk.begin(["a", "b"])
        await until(lambda: batch.num_completed)
    (tmp_path / "files" / batch.input_file_id).unlink()
    async with serving(tmp_path, echo) as clerk:
        ended = await clerk.ended(batch)
        assert (ended.status, ended.errors[0].code) == ("failed", "file_missing")
        assert clerk.told(ended.output_file_id) == ["b"]


async def test_there_are_so_many_at_most(clerk: Clerk) -> None:
    clerk.at_leisure = False
    batch = await clerk.begin(["a"])
    ask = BatchAsk("me", batch.input_file_id, ENDPOINT, "24h")
    for _ in range(MAX_OPEN - 1):
        await clerk.batches.create(ask)
    with pytest.raises(Overloaded):
        await clerk.batches.create(ask)


async def test_without_a_folder_all_goes_with_the_server(echo: Echo) -> None:
    clerk = Clerk(Path(), echo)
    await clerk.batches.open(None)
    batch = await clerk.ended(await clerk.begin(["a"]))
    path = clerk.batches.files.path(batch.output_file_id or "")
    assert path.exists()
    await clerk.batches.close()
    assert not path.exists()
