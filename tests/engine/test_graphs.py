"""Which decode graphs are captured, when, and which one a step gets."""

from __future__ import annotations

import gc
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmserve.device.host import HostDevice
from lmserve.engine.graphs import MIN_MISSES, DecodeGraphs, buckets


class Rows:
    """As a runner: tensors that graphs are captured on."""

    def __init__(self, max_rows: int = 32):
        self.tokens = torch.zeros(max_rows, dtype=torch.int64)
        self.built: list[tuple[int, str]] = []

    def build(self, num_rows: int, kind: str):
        self.built.append((num_rows, kind))
        tokens = self.tokens[:num_rows]

        def run() -> torch.Tensor:
            if kind == "reading" and tokens[0].item():
                return tokens
            if kind == "vast":
                raise torch.OutOfMemoryError("no room")
            return tokens * 2 if kind == "greedy" else tokens * 3

        return run


class LastDrops(HostDevice):
    """Has memory for so many graphs, and for one more once what is cached is released."""

    def __init__(self, num_graphs: int):
        super().__init__()
        self.num_graphs = num_graphs

    def capture(self, run, pool=None):
        if self.num_graphs == 0:
            raise torch.OutOfMemoryError("no room for a graph")
        self.num_graphs -= 1
        return super().capture(run, pool)

    def release_cached(self) -> None:
        super().release_cached()
        if self.num_released == 1:
            self.num_graphs = 1


def graphs_of(rows: Rows, kinds=("greedy",), device: HostDevice | None = None):
    return DecodeGraphs(device or HostDevice(), rows.build, max_rows=len(rows.tokens), kinds=kinds)


def finish_chores(graphs) -> None:
    for _ in range(100):
        if not graphs.has_chores:
            return
        graphs.do_chore()
    pytest.fail("the chores do not come to an end")


def miss(graphs, num_rows: int, kind: str = "greedy", times: int = MIN_MISSES) -> None:
    for _ in range(times):
        graphs.find(num_rows, kind)


def test_a_graph_computes_from_what_the_rows_hold():
    rows = Rows(8)
    graphs = graphs_of(rows, ("greedy", "sampled"))
    finish_chores(graphs)
    for kind, factor in (("greedy", 2), ("sampled", 3)):
        found = graphs.find(3, kind)
        rows.tokens[:3] = torch.tensor([4, 5, 6])
        found.graph.replay()
        assert found.num_rows == 4
        assert found.graph.out[:3].tolist() == [4 * factor, 5 * factor, 6 * factor]


def test_idle_it_captures_all_once():
    rows = Rows(12)
    graphs = graphs_of(rows, ("greedy", "sampled"))
    assert not graphs.has_wanted
    finish_chores(graphs)
    sizes = [12, 1, 2, 4, 8]
    assert rows.built == [(n, "greedy") for n in sizes] + [(n, "sampled") for n in sizes]
    graphs.do_chore()  # of which there is none
    assert len(rows.built) == 10


def test_without_any_a_step_runs_without():
    graphs = graphs_of(Rows())
    assert graphs.find(3, "greedy") is None
    assert graphs.find(33, "greedy") is None  # more than there may be


def test_what_steps_miss_comes_first():
    rows = Rows()
    graphs = graphs_of(rows)
    miss(graphs, 3, times=1)
    miss(graphs, 11, times=2)
    graphs.do_chore()
    assert rows.built == [(12, "greedy")]
    assert graphs.find(9, "greedy").num_rows == 12
    graphs.do_chore()
    assert rows.built[1:] == [(4, "greedy")]


def test_a_server_at_work_is_held_up_only_for_what_is_missed_often():
    rows = Rows()
    graphs = graphs_of(rows)
    miss(graphs, 5, times=MIN_MISSES - 1)
    assert not graphs.has_wanted
    miss(graphs, 5, times=1)
    assert graphs.has_wanted
    graphs.do_chore()
    assert not graphs.has_wanted
    assert rows.built == [(8, "greedy")]


def test_a_kind_nobody_foresaw_is_captured_where_it_is_missed():
    rows = Rows()
    graphs = graphs_of(rows, ())
    assert not graphs.has_chores
    miss(graphs, 2, "sampled")
    finish_chores(graphs)
    assert rows.built == [(2, "sampled")]


def test_a_graph_of_up_to_twice_the_rows_will_do():
    rows = Rows()
    graphs = graphs_of(rows)
    miss(graphs, 8)
    graphs.do_chore()
    found = [graphs.find(num, "greedy") for num in range(1, 12)]
    assert [None if each is None else each.num_rows for each in found] == (
        [None] * 3 + [8] * 5 + [None] * 3
    )
    assert graphs.has_wanted is False
    miss(graphs, 4)  # its own is captured all the same
    graphs.do_chore()
    assert graphs.find(4, "greedy").num_rows == 4


def test_what_cannot_be_captured_runs_without_from_then_on(caplog):
    rows = Rows()
    graphs = graphs_of(rows, ("reading", "greedy"))
    with caplog.at_level(logging.WARNING):
        finish_chores(graphs)
    assert [kind for _, kind in rows.built].count("reading") == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "reading steps of 32 rows cannot be captured" in caplog.text
    assert graphs.find(4, "reading") is None
    miss(graphs, 4, "reading")
    assert not graphs.has_wanted
    assert graphs.find(4, "greedy").num_rows == 4


def test_without_memory_for_more_it_keeps_those_it_has(caplog):
    rows, device = Rows(8), LastDrops(2)
    graphs = graphs_of(rows, device=device)
    finish_chores(graphs)
    assert [num for num, _ in rows.built] == [8, 1, 2, 4]
    assert device.num_released == 2
    assert graphs.find(2, "greedy").num_rows == 2
    assert graphs.find(4, "greedy").num_rows == 8
    assert caplog.text.count("no memory is left for more CUDA graphs") == 1
    assert not graphs.has_chores


def test_memory_that_is_out_within_the_first_capture_is_asked_for_again():
    rows = Rows(4)
    runs = []

    def build(num_rows: int, kind: str):
        def run() -> torch.Tensor:
            runs.append(num_rows)
            if len(runs) == 2:  # the one that is captured
                raise torch.OutOfMemoryError("no room within the pool")
            return rows.tokens[:num_rows] * 2

        return run

    graphs = DecodeGraphs(HostDevice(), build, max_rows=4, kinds=["greedy"])
    graphs.do_chore()
    assert graphs.find(4, "greedy") is not None


def test_when_a_tensor_has_moved_all_are_captured_again():
    rows, device = Rows(4), LastDrops(0)
    graphs = graphs_of(rows)
    miss(graphs, 4)
    finish_chores(graphs)
    rows.tokens = torch.full((4,), 5)
    stale = graphs.find(4, "greedy").graph
    stale.replay()
    assert stale.out.tolist() == [0, 0, 0, 0]  # of the tensor that it knows, as on CUDA
    graphs.invalidate()
    assert graphs.find(4, "greedy") is None
    assert not graphs.has_wanted  # misses of before count no more
    finish_chores(graphs)
    again = graphs.find(4, "greedy").graph
    again.replay()
    assert again.out.tolist() == [10, 10, 10, 10]
    full = graphs_of(rows, ("vast",), device)
    finish_chores(full)
    full.invalidate()
    assert full.has_chores


@given(st.integers(1, 600), st.data())
def test_buckets_pad_little(max_rows, data):
    sizes = buckets(max_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_rows
    assert len(sizes) <= 36
    num = data.draw(st.integers(1, max_rows))
    size = min(size for size in sizes if size >= num)
    share = 1 / 3 if num <= 32 else 1 / 5 if num <= 128 else 1 / 9
    assert size - num <= max(3, share * size)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=30))
def test_whatever_comes_a_step_gets_a_graph_that_holds_it(steps):
    rows = Rows()
    graphs = graphs_of(rows, ())
    for num_rows, chore in steps:
        if num_rows and (found := graphs.find(num_rows, "greedy")) is not None:
            assert num_rows <= found.num_rows <= max(2 * num_rows, 32)
            assert found.graph.out.shape == (found.num_rows,)
        if chore:
            graphs.do_chore()
    assert len(rows.built) == len(set(rows.built))
    assert gc.isenabled()
