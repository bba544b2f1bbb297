"""What crosses the bridge arrives as it was sent."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.messages import (
    Abort,
    Begun,
    Control,
    ControlReply,
    EngineStats,
    LoadFailed,
    Loading,
    SequenceOutput,
    StepOutput,
    Submit,
    ToEngine,
    ToServer,
    Update,
    pack_ids,
    unpack_ids,
)
from lmserve.sampling import SamplingParams

token_ids = st.lists(st.integers(0, 2**31 - 1))


@given(token_ids)
def test_token_ids_are_int32_bytes(ids: list[int]):
    packed = pack_ids(ids)
    assert len(packed) == 4 * len(ids)
    assert unpack_ids(packed) == ids
    assert packed == b"".join(i.to_bytes(4, "little") for i in ids)


sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    seed=st.integers(0, 2**63 - 1),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1)).map(tuple),
)
submits = st.builds(Submit, st.integers(0, 2**62), token_ids.map(pack_ids), sampling)
aborts = st.builds(Abort, st.lists(st.integers(0, 2**62)))
updates = st.builds(Update, st.integers(0, 2**62), sampling)
controls = st.builds(Control, st.integers(0, 2**62), st.text())


@given(st.lists(submits | updates | aborts | controls))
def test_a_frame_to_the_engine_comes_back(frame: list[ToEngine]):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=list[ToEngine]) == frame


@pytest.mark.parametrize(
    "message",
    [
        Loading("weights"),
        LoadFailed("no such file"),
        Begun([3, 4]),
        StepOutput(
            [SequenceOutput(1, pack_ids([5]), finish="stop", queue_s=0.25)], EngineStats(steps=3)
        ),
        ControlReply(7, {"free": 3}),
        ControlReply(8, error="no such verb"),
    ],
)
def test_a_message_to_the_server_comes_back(message: ToServer):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToServer) == message
