"""Sampling on the device: the settings of every sequence stay there, and graphs draw by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch

from lmserve.device.base import Device
from lmserve.engine.plan import Row
from lmserve.engine.sampling import device_late
from lmserve.engine.sampling.changes import count_history
from lmserve.engine.sampling.sampler import stream_of
from lmserve.fused.sampling_base import (
    ONE,
    PROMPT_ONLY,
    Chosen,
    Column,
    Settings,
    sampling_ops,
)
from lmserve.sampling import SamplingParams

Kind: TypeAlias = Literal["greedy", "drawn", "late"]
GREEDY = SamplingParams(temperature=0.0)


class DeviceSampler:
    """A slot for each sequence, and one more, `num_slots`, for the padding rows of a graph.

    The tokens are those of `sampler.sample` but for the last bits of exp, and of penalties, which
    are float32 here: a draw that falls between two tokens may take the other.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: Device, kernels: str):
        self._shape = num_slots + 1, vocab_size
        self._device = device
        self._ops = sampling_ops(kernels)
        neutral = np.tile(encoded(GREEDY, vocab_size), (num_slots + 1, 1))
        self._settings = Settings(device.upload(neutral))
        self._sent = [neutral[0].tobytes()] * (num_slots + 1)  # what the device knows
        self._noted: dict[int, np.ndarray] = {}  # what it is to know
        self._histories: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # and of penalised rows

    @property
    def generation(self) -> int:
        """Of graphs that draw: those of an earlier one know nothing of penalties."""
        return int(self._settings.counts is not None)

    def assign(self, slot: int, row: Row) -> None:
        """The row's sequence has this slot from the next `send` on, with the row's settings and
        history. Needed whenever one of them changed by other than a token drawn here: after a
        preemption, after a step that failed or was run again, after proposed tokens."""
        assert row.sampling is not None, "only rows that sample have settings"
        vocab_size = self._shape[1]
        settings = encoded(row.sampling, vocab_size)
        self._histories.pop(slot, None)
        if row.sampling.penalised:
            self._histories[slot] = count_history(row, vocab_size)
        if settings.tobytes() == self._sent[slot]:
            self._noted.pop(slot, None)
        else:
            self._noted[slot] = settings

    @torch.inference_mode()
    def send(self) -> None:
        """What was assigned since; nothing where the device knows it."""
        if self._noted:
            slots, rows = self._device.upload_together(
                [np.array(list(self._noted)), np.stack(list(self._noted.values()))]
            )
            self._settings.table.index_copy_(0, slots, rows)
            for slot, settings in self._noted.items():
                self._sent[slot] = settings.tobytes()
            self._noted = {}
        if self._histories:
            self._send_counts(self._histories)
            self._histories = {}

    def kind(self, row: Row) -> Kind:
        """How the row's next token is chosen: `late` where it takes what only the host knows."""
        params = row.sampling
        assert params is not None, "only rows that sample"
        if row.rules or row.banned_ids or row.forced is not None or params.grammar is not None:
            return "late"
        if row.num_proposed and params.penalised:
            return "late"
        return "greedy" if params.greedy and not params.penalised else "drawn"

    @torch.inference_mode()
    def draw(
        self, logits: torch.Tensor, slots: torch.Tensor, indices: torch.Tensor, kind: Kind
    ) -> Chosen:
        """Of logits (B, V) of any float dtype, which are not written to. A graph may capture it.
        All rows may be drawn; `greedy` is faster where all are that."""
        if kind == "greedy":
            return self._ops.likeliest(logits)
        return self._ops.draw(logits, self._settings, slots, indices)

    @torch.inference_mode()
    def draw_late(
        self,
        logits: torch.Tensor,
        rows: Sequence[Row],
        slots: torch.Tensor,
        indices: torch.Tensor,
        masks: np.ndarray | None = None,
    ) -> Chosen:
        """Of rows of any kind; it uploads, and waits for nothing. Their histories are complete.
        `masks` (B, vocab / 32) int32 are those of grammars."""
        given = self._ops.likeliest(logits)  # finite is what the model gave, before any ban
        changed = torch.empty_like(
            logits, dtype=torch.float32, memory_format=torch.contiguous_format
        ).copy_(logits)
        device_late.change(changed, rows, masks, self._device)
        settings, places = self._settings, slots
        if settings.counts is not None and device_late.proposes(rows):
            settings = Settings(
                settings.table.index_select(0, slots), settings.counts.index_select(0, slots)
            )
            device_late.add_proposed(settings, rows, self._device)
            places = torch.arange(len(rows), device=slots.device)
        chosen = self._ops.draw(changed, settings, places, indices, banned=True, counting=False)
        chosen = device_late.forced(chosen, given.finite, rows, self._device)
        if self._settings.counts is not None:
            device_late.count_chosen(self._settings.counts, chosen, slots, rows, self._device)
        return chosen

    def _send_counts(self, histories: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
        counts = self._settings.counts
        if counts is None:
            counts = torch.zeros(self._shape, dtype=torch.int16, device=self._device.torch_device)
            self._settings = Settings(self._settings.table, counts)
        places = [slot * self._shape[1] + tokens for slot, (tokens, _) in histories.items()]
        values = [np.where(num == 0, PROMPT_ONLY, num) for _, num in histories.values()]
        slots, place, value = self._device.upload_together(
            [
                np.array(list(histories)),
                np.concatenate(places),
                np.concatenate(values).clip(max=np.iinfo(np.int16).max).astype(np.int16),
            ]
        )
        counts.index_fill_(0, slots, 0)
        counts.view(-1).scatter_(0, place, value)


def encoded(params: SamplingParams, vocab_size: int) -> np.ndarray:
    """A row of the table."""
    row = np.zeros(len(Column), dtype=np.int64)
    numbers = row.view(np.float64)
    numbers[Column.TOP_P] = 1.0
    numbers[Column.REPETITION] = params.repetition_penalty
    numbers[Column.PRESENCE] = params.presence_penalty
    numbers[Column.FREQUENCY] = params.frequency_penalty
    row[Column.PENALISED] = params.penalised
    if not params.greedy:
        row[Column.TOP_K] = params.top_k if 0 < params.top_k < vocab_size else 0
        row[Column.MIN_WEIGHT] = int(np.ceil(params.min_p * ONE))
        row[Column.STREAM : Column.STREAM + 1] = np.array([stream_of(params.seed)]).view(np.int64)
        numbers[Column.TEMPERATURE] = params.temperature
        numbers[Column.TOP_P] = params.top_p
    return row
