"""What the device keeps of each sequence from step to step: its last token and its block table.
The host sends what has changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmserve.device.base import Device
from lmserve.engine.plan import Row
from lmserve.sampling import SamplingParams


@dataclass(slots=True)
class Slot:
    """The device's place for a sequence, and what is known there."""

    index: int
    blocks: Sequence[int] = ()  # the very list of the sequence: it only grows
    num_blocks: int = 0  # of them, that were sent
    sampling: SamplingParams | None = None
    next_index: int = -1  # of the token that is drawn next, if all goes on as it was


class DeviceRows:
    """One slot for each sequence of a step, and one more, `num_slots`, for the padding rows of a
    graph: its block table is the block that belongs to nobody. A sequence keeps its slot until
    another needs one; whoever is in no step has nothing there that the host does not know."""

    def __init__(self, num_slots: int, max_blocks: int, spare_block: int, device: Device):
        size = num_slots + 1
        self.num_slots = num_slots
        self._device = device
        place = device.torch_device
        self.last_tokens = torch.zeros(size, dtype=torch.int64, device=place)
        self.tables = torch.full((size, max_blocks), spare_block, dtype=torch.int32, device=place)
        self._slots: OrderedDict[int, Slot] = OrderedDict()  # by rid, that used last at the end
        self._free = list(reversed(range(num_slots)))

    def place(self, rows: Sequence[Row]) -> list[Slot]:
        """The slots of a step's rows; the device knows their blocks after this."""
        for row in rows:
            if row.rid in self._slots:
                self._slots.move_to_end(row.rid)
        slots = [self._slots.get(row.rid) or self._take(row.rid) for row in rows]
        self._send_blocks(rows, slots)
        return slots

    def _take(self, rid: int) -> Slot:
        index = self._free.pop() if self._free else self._slots.popitem(last=False)[1].index
        slot = self._slots[rid] = Slot(index)
        return slot

    def _send_blocks(self, rows: Sequence[Row], slots: Sequence[Slot]) -> None:
        width = self.tables.shape[1]
        places: list[int] = []
        blocks: list[int] = []
        sent: list[tuple[Slot, int]] = []
        for row, slot in zip(rows, slots, strict=True):
            if slot.blocks is not row.blocks:  # it lost its own, or is another of that id
                slot.blocks, slot.num_blocks, slot.sampling = row.blocks, 0, None
            new = row.blocks[slot.num_blocks : width]
            if new:
                first = slot.index * width + slot.num_blocks
                places.extend(range(first, first + len(new)))
                blocks.extend(new)
                sent.append((slot, len(new)))
        if blocks:
            index, values = self._device.upload_together(
                [np.array(places, dtype=np.int64), np.array(blocks, dtype=np.int32)]
            )
            self.tables.view(-1).index_copy_(0, index, values)
        for slot, num in sent:  # only now: a step that failed here is launched again
            slot.num_blocks += num
