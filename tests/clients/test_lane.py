"""A lane tells each event once, in order, whatever connections repeat or lose."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lmserve_client.lane import Lane

WORDS = ["Once", " upon", " a", " time"]


def stream(id: str, words: list[str], status: str = "completed", **fields: Any) -> list[Any]:
    """All events of a response."""
    response = {"id": id, "status": "in_progress", "output": []}
    text = {"type": "output_text", "text": "".join(words)}
    ended = {**response, "status": status, "output": [{"type": "message", "content": [text]}]}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": response}]
    events += [{"type": "response.output_text.delta", "delta": word} for word in words]
    events.append({"type": f"response.{status}", "response": {**ended, **fields}})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


STEERED = {"incomplete_details": {"reason": "steered"}}


def text_of(lane: Lane) -> str:
    return "".join(event.text for _, event in lane.events)


async def _take(cuts: list[tuple[int, int]]) -> Lane:
    """Each connection begins so many events too early, and breaks after some."""
    lane = Lane("a1", {})
    first = stream("resp_1", WORDS, "incomplete", **STEERED)
    second = stream("resp_2", WORDS)
    for back, length in [*cuts, (0, 100), (0, 100)]:
        events = second if lane.response_id == "resp_2" or lane.over else first
        begin = 0 if events is second and lane.over else max(0, lane.last + 1 - back)
        for event in events[begin : begin + length]:
            lane.take(dict(event))
    return lane


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=12))
def test_each_event_comes_once(cuts: list[tuple[int, int]]) -> None:
    lane = asyncio.run(_take(cuts))
    assert lane.ended
    assert text_of(lane) == 2 * "".join(WORDS)
    numbers = [event.sequence_number for _, event in lane.events]
    assert numbers == [*range(6), *range(6)]


@given(st.integers(1, 5))
def test_the_rest_from_the_whole(num_events: int) -> None:
    async def take() -> Lane:
        lane = Lane("a1", {})
        events = stream("resp_1", WORDS)
        for event in events[:num_events]:
            lane.take(event)
        lane.take_whole(events[-1]["response"])
        lane.take_whole(events[-1]["response"])
        return lane

    lane = asyncio.run(take())
    assert lane.ended
    assert text_of(lane) == "".join(WORDS)
