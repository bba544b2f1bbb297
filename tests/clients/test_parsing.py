"""Answers are the same however the network cuts them."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lmserve_client.errors import APIResponseError
from lmserve_client.parsing import AnswerParser, LineSplitter

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5)
FRAMES = [
    "{}\n",  # LMDeploy's interactive route
    "{}\r\n",
    "data: {}\n\n",  # OpenAI's
    "data:{}\r\n\r\n",
    "data: {}\n",  # LMDeploy 0.2's proxy
    ": still here\n\nevent: chunk\nid: 7\nretry: 5\ndata: {}\n\n",
]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@given(
    OBJECTS,
    st.sampled_from(FRAMES),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 2000), max_size=30),
)
@example([{"text": "a\u2028b\x85c\u0000"}], FRAMES[0], False, True, True, list(range(40)))
def test_any_cut_gives_the_same_objects(
    objects: list[dict[str, object]],
    frame: str,
    done: bool,
    ended: bool,
    escaped: bool,
    places: list[int],
) -> None:
    lines = [json.dumps(item, ensure_ascii=escaped) for item in objects]
    text = "".join(frame.format("\0").replace("\0", line) for line in lines)
    if done:
        text += "data: [DONE]\n\n"
    data = text.encode()
    if not ended:
        data = data.rstrip(b"\r\n")
    parser = AnswerParser()
    found = [item for piece in cut(data, places) for item in parser.feed(piece)]
    assert found + parser.end() == objects
    assert parser.end() == []


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), min_size=1))
def test_lines_are_what_lies_between_line_ends(lines: list[bytes]) -> None:
    splitter = LineSplitter()
    data = b"\n".join(lines)
    found = [line for byte in data for line in splitter.feed(bytes([byte]))]
    assert found + splitter.end() == (lines if lines[-1] else lines[:-1])


@pytest.mark.parametrize("line", [b"<html>", b"[1]", b"data: 3", b'{"text": "cut', b"\xff"])
def test_what_is_no_object_is_told(line: bytes) -> None:
    with pytest.raises(APIResponseError, match="no JSON object"):
        AnswerParser().feed(line + b"\n")
