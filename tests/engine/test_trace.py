"""The trace of an engine, held to what the format's document asks for and viewers need."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lmserve.engine.core import EngineCore
from lmserve.engine.trace import OFF, FileTrace, Trace
from lmserve.errors import SettingsError
from lmserve.messages import Abort, Submit, pack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from tests.engine.paged import PagedRunner

Event = dict[str, Any]
ABORTED = {2: [2, 77], 6: [3]}  # by step: one that waits, one that decodes


def traced(path: Path, *, close: bool = True) -> str:
    """A long prompt in chunks, short ones that wait for it, some aborted and one refused."""
    settings = EngineSettings(profile=str(path), max_batch_size=3, max_step_tokens=8)
    core = EngineCore(settings, PagedRunner())
    core.load(lambda stage: None)
    prompts = [[*range(30)], [1, 2], [3], [4, 5], [6], []]
    for rid, prompt in enumerate(prompts):
        core.handle([Submit(rid, pack_ids(prompt), SamplingParams(max_tokens=6))])
    for number in range(100):
        core.handle([Abort(aborted)] if (aborted := ABORTED.get(number)) else [])
        if not core.has_work():
            break
        core.step()
    assert not core.has_work()
    if close:
        core.close()
    return path.read_text()


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    found: list[Event] = json.loads(traced(tmp_path_factory.mktemp("trace") / "trace.json"))
    return found


def of(events: list[Event], *phases: str) -> list[Event]:
    return [event for event in events if event["ph"] in phases]


def test_each_event_has_what_its_phase_asks_for(events: list[Event]) -> None:
    assert {event["ph"] for event in events} == {"M", "X", "C", "b", "e"}
    for event in events:
        assert {"name", "ph", "ts", "pid", "tid"} <= event.keys()
        assert isinstance(event["name"], str) and event["ts"] >= 0
    assert all(event["dur"] >= 0 for event in of(events, "X"))
    assert all(event["cat"] and isinstance(event["id"], str) for event in of(events, "b", "e"))
    for event in of(events, "C"):
        assert [type(number) for number in event["args"].values()] == [int]
    assert {event["name"] for event in of(events, "M")} == {"process_name", "thread_name"}
    assert len({(event["pid"], event["tid"]) for event in events}) == 1


def test_times_never_go_back(events: list[Event]) -> None:
    times = [event["ts"] for event in of(events, "X", "C", "b", "e")]
    assert times == sorted(times)


def test_spans_nest_and_every_step_has_its_parts(events: list[Event]) -> None:
    open_until: list[tuple[str, float]] = []
    parts: list[list[str]] = []
    for event in of(events, "X"):
        ends = event["ts"] + event["dur"]
        while open_until and open_until[-1][1] <= event["ts"]:
            open_until.pop()
        if open_until:
            assert ends <= open_until[-1][1] + 1e-3, "it ends after what it is in"
            assert open_until[0][0] == "step"
            parts[-1].append(event["name"])
        else:
            parts.append([])
        open_until.append((event["name"], ends))
    assert len(parts) > 8
    # the runner's parts are its own
    assert all(names == ["schedule", "masks", "commit"] for names in parts)


def test_each_request_has_a_track_from_its_submission_to_its_end(events: list[Event]) -> None:
    tracks: dict[str, list[str]] = {}
    for event in of(events, "b", "e"):
        finish = event.get("args", {}).get("finish", "")
        mark, name = "+" if event["ph"] == "b" else "-", event["name"]
        if name == f"request {event['id']}":
            name = f"request {finish}".strip()
        tracks.setdefault(event["id"], []).append(mark + name)
    waits, runs = ["+request", "+queued", "-queued"], ["+prefill", "-prefill", "+decode", "-decode"]
    whole = [*waits, *runs, "-request length"]
    assert tracks.pop("2") == [*waits, "-request abort"]
    assert tracks.pop("3") == [*waits, *runs, "-request abort"]
    assert tracks.pop("5") == [*waits, "-request error"]
    assert tracks == dict.fromkeys("014", whole)


def test_the_numbers_are_those_of_the_steps(events: list[Event]) -> None:
    told: dict[str, list[int]] = {}
    for event in of(events, "C"):
        ((kind, number),) = event["args"].items()
        told.setdefault(f"{event['name']} {kind}", []).append(number)
    assert set(told) == {"rows a step", "tokens a step", "KV blocks used", "requests waiting"}
    greatest = [max(told[name]) for name in ("rows a step", "tokens a step", "requests waiting")]
    assert greatest == [3, 8, 4]
    assert told["KV blocks used"][-1] == told["requests waiting"][-1] == 0


def test_a_file_that_was_not_closed_lacks_its_last_bracket_alone(tmp_path: Path) -> None:
    trace = FileTrace(tmp_path / "trace.json")
    with trace.span("step"):
        pass
    trace._flush()
    text = (tmp_path / "trace.json").read_text()
    assert [event["name"] for event in json.loads(text + "]")][-1] == "step"
    trace.close()


def test_a_full_file_ends_well_and_memory_stays_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trace.json"
    trace = FileTrace(path, max_bytes=300_000)
    with caplog.at_level(logging.WARNING):
        for rid in range(20_000):
            trace.submitted(rid)
            with trace.span("step"):
                trace.aborted([rid])
            assert len(trace._events) < 2100 and not trace._phases
    trace.close()
    assert len(json.loads(path.read_text())) > 1000
    assert 300_000 < path.stat().st_size < 700_000
    assert [record.message for record in caplog.records] == [f"{path} is full: the trace ends here"]


def test_a_trace_that_cannot_be_written_is_refused_before_the_model_is_loaded() -> None:
    core = EngineCore(EngineSettings(model="no-such-model", profile="no/such/folder/trace.json"))
    with pytest.raises(SettingsError, match="profile: cannot write no/such/folder/trace"):
        core.load(lambda stage: None)


def test_without_one_nothing_is_noted() -> None:
    core = EngineCore(EngineSettings(), PagedRunner())
    core.load(lambda stage: None)
    assert core.trace is OFF and type(OFF) is Trace
    assert OFF.span("step") is OFF.span("send")
    core.close()
