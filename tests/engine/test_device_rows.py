from __future__ import annotations

from typing import Any

import pytest
import torch

from lmserve.device.host import HostDevice
from lmserve.engine.device_rows import DeviceRows
from lmserve.engine.plan import Row
from lmserve.sampling import SamplingParams

SPARE = 9  # the block of padding rows


class Short(HostDevice):
    """Without memory for some uploads to come."""

    num_refused = 0

    def upload(self, numbers: Any) -> torch.Tensor:
        if self.num_refused:
            self.num_refused -= 1
            raise torch.OutOfMemoryError("no room for an upload")
        return super().upload(numbers)


def row(rid: int, blocks: list[int]) -> Row:
    return Row(rid, [1], 0, blocks, SamplingParams(), [1])


def known(rows: DeviceRows, index: int) -> list[int]:
    return [block for block in rows.tables[index].tolist() if block != SPARE]


def test_what_did_not_arrive_is_sent_again() -> None:
    device = Short()
    rows, blocks = DeviceRows(2, 4, SPARE, device), [3]
    (slot,) = rows.place([row(0, blocks)])
    blocks.append(5)
    device.num_refused = 1
    with pytest.raises(torch.OutOfMemoryError):
        rows.place([row(0, blocks), row(1, [6])])
    slots = rows.place([row(0, blocks), row(1, [6])])
    assert slots[0] is slot
    assert [known(rows, each.index) for each in slots] == [[3, 5], [6]]


def test_who_used_its_slot_last_keeps_it() -> None:
    rows = DeviceRows(2, 4, SPARE, HostDevice())
    tables = [[0], [1], [2]]
    first, second = rows.place([row(rid, tables[rid]) for rid in (0, 1)])
    rows.place([row(0, tables[0])])
    again, third = rows.place([row(0, tables[0]), row(2, tables[2])])
    assert again is first
    assert third.index == second.index
    assert known(rows, third.index) == [2]


def test_another_of_the_same_id_has_nothing_of_the_one_before() -> None:
    rows = DeviceRows(2, 4, SPARE, HostDevice())
    (slot,) = rows.place([row(0, [3])])
    slot.sampling = SamplingParams()
    (slot,) = rows.place([row(0, [3])])
    assert slot.sampling is None
