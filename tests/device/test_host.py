"""The CPU's graphs: what a replay does, and what cannot be captured."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from lmserve.device.host import HostDevice
from lmserve.device.launches import launch
from lmserve.device.recorder import CaptureError

HOST = HostDevice()


def test_a_replay_computes_from_what_its_inputs_hold_now():
    x, weight = torch.zeros(2, 3), torch.arange(12.0).view(4, 3)
    graph = HOST.capture(lambda: torch.softmax(functional.linear(x, weight), dim=-1))
    for seed in range(3):
        x.normal_(generator=torch.Generator().manual_seed(seed))
        graph.replay()
        assert torch.equal(graph.out, torch.softmax(functional.linear(x, weight), dim=-1))


def test_outputs_mean_nothing_before_the_first_replay():
    graph = HOST.capture(lambda: torch.ones(3) + 1)
    assert graph.out.isnan().all()
    graph.replay()
    assert graph.out.tolist() == [2, 2, 2]


def test_views_stay_views():
    x = torch.zeros(4, 2)

    def run():
        y = x * 2
        return y, y[1:].reshape(-1), x.t()

    graph = HOST.capture(run)
    x.copy_(torch.arange(8).view(4, 2))
    graph.replay()
    whole, part, turned = graph.out
    assert part.tolist() == [4, 6, 8, 10, 12, 14]
    assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert turned.data_ptr() == x.data_ptr()


def test_what_is_written_in_place_is_written_by_each_replay():
    total, rows, at = torch.zeros(4), torch.zeros(2, 4), torch.tensor([1])

    def run():
        total.add_(1)
        rows[:, 0] = 5
        rows.index_copy_(0, at, (total * 2).unsqueeze(0))
        torch.mul(total, 3, out=out)

    out = torch.empty(4)
    graph = HOST.capture(run)
    total.zero_()
    at.fill_(0)
    for turn in (1, 2):
        graph.replay()
        assert total.tolist() == [turn] * 4
        assert rows[0].tolist() == [2 * turn] * 4
        assert rows[1, 0] == 5
        assert out.tolist() == [3 * turn] * 4


def test_results_go_into_the_tensors_that_were_there_when_captured():
    state = {"x": torch.ones(2)}
    graph = HOST.capture(lambda: state["x"] * 10)
    state["x"] = torch.full((2,), 7.0)  # another tensor: the graph knows the old one
    graph.replay()
    assert graph.out.tolist() == [10, 10]


def test_numbers_of_the_host_are_as_they_were():
    number, x = 2, torch.ones(2)
    graph = HOST.capture(lambda: x * number)
    number = 3
    graph.replay()
    assert graph.out.tolist() == [2, 2]


def test_zeros_are_zeros_again_and_empty_is_anything():
    x = torch.ones(3)

    def run():
        zeros, empty = torch.zeros(3), torch.empty(3)
        return zeros.add_(x), empty[:1].copy_(x[:1]), empty

    graph = HOST.capture(run)
    for _ in range(2):
        graph.replay()
        assert graph.out[0].tolist() == [1, 1, 1]
        assert graph.out[1].tolist() == [1]
        assert graph.out[2][1:].isnan().all()


def test_what_is_random_is_drawn_anew():
    graph = HOST.capture(lambda: torch.rand(8))
    graph.replay()
    first = graph.out.clone()
    graph.replay()
    assert not torch.equal(first, graph.out)


def test_run_runs_twice():
    runs = []
    HOST.capture(lambda: runs.append(1))
    assert len(runs) == 2


X = torch.arange(6.0)
NOT_CAPTURED = {
    "item": lambda: X[0].item(),
    "tolist": lambda: X.tolist(),
    "bool": lambda: bool(X.any()),
    "if": lambda: X if X[0] > 1 else None,
    "int": lambda: int(X[0]),
    "index": lambda: [1, 2][X[1].long()],
    "equal": lambda: torch.equal(X, X),
    "numpy": lambda: X.numpy(),
    "asarray": lambda: np.asarray(X),
    "cpu": lambda: X.cpu(),
    "to cpu": lambda: X.to("cpu"),
    "to device cpu": lambda: X.to(device="cpu"),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 1),
    "masked": lambda: X[X > 1],
    "set masked": lambda: X.__setitem__(X > 9, 1.0),
    "masked_select": lambda: torch.masked_select(X, X > 1),
    "unique": lambda: torch.unique(X),
    "repeat": lambda: torch.repeat_interleave(X, X.long()),
    "multinomial": lambda: torch.multinomial(X, 1),
    "tensor": lambda: torch.tensor([1, 2]),
    "scalar": lambda: X + torch.tensor(1.0),
    "as_tensor": lambda: torch.as_tensor(np.ones(2)),
    "from_numpy": lambda: X + torch.from_numpy(np.ones(6)),
    "frombuffer": lambda: torch.frombuffer(bytearray(24), dtype=torch.float32) + X,
    "list index": lambda: X[[0, 1]],
    "set_": lambda: torch.empty(0).set_(X),
    "resize_": lambda: torch.empty(0).resize_(8),
    "upload": lambda: HOST.upload(array("q", [1])),
    "fetch": lambda: HOST.fetch([X]),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", NOT_CAPTURED)
def test_what_cuda_cannot_capture(name, inference):
    with torch.inference_mode(inference), pytest.raises(CaptureError):
        HOST.capture(NOT_CAPTURED[name])


def test_what_looks_like_it_but_can_be_captured():
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])

    def run():
        y = torch.where(mask, x, 0.0)
        y[1] = 5
        y[3:] = 6.0
        y = y.masked_fill(mask, 1).to(x.device)
        return (
            y,
            y.repeat_interleave(2, output_size=8),
            y[mask.long()],
            y.to(torch.float64),
            max(3, 4),
        )

    graph = HOST.capture(run)
    graph.replay()
    assert graph.out[0].tolist() == [1, 5, 1, 6]
    assert graph.out[2].tolist() == [5, 1, 5, 1]


def test_a_pool_is_gone_with_its_last_graph_or_spoilt():
    pool = HOST.graph_pool()
    graphs = [HOST.capture(lambda: X * 2, pool) for _ in range(2)]
    del graphs[0]
    graphs.append(HOST.capture(lambda: X * 3, pool))
    graphs.clear()
    with pytest.raises(CaptureError, match="went with the last"):
        HOST.capture(lambda: X * 4, pool)
    pool = HOST.graph_pool()
    kept = HOST.capture(lambda: X * 2, pool)
    with pytest.raises(CaptureError):
        HOST.capture(lambda: X[0].item(), pool)
    with pytest.raises(CaptureError, match="was spoilt"):
        HOST.capture(lambda: X * 3, pool)
    kept.replay()
    assert torch.equal(kept.out, X * 2)


def test_after_a_capture_that_failed_all_is_as_before():
    with pytest.raises(CaptureError):
        HOST.capture(lambda: X[0].item())
    assert X[1].item() == 1
    assert torch.tensor([1, 2]).tolist() == [1, 2]
    graph = HOST.capture(lambda: X + 1)
    graph.replay()
    assert graph.out[0] == 1


# --- launches ------------------------------------------------------------------------------


@launch
def double_into(out: torch.Tensor, x: torch.Tensor, times: int, parts: list[int]) -> None:
    """As a kernel in Triton's interpreter: by the host's numbers."""
    values = np.array(x.tolist()) * times
    for part in parts:
        out[part] = torch.tensor(values[part])


@launch
def twice(out: torch.Tensor, x: torch.Tensor) -> None:
    double_into(out, x, 2, [0])


@launch
def returns_something(x: torch.Tensor) -> None:
    return x  # type: ignore[return-value]


def test_a_launch_is_repeated_as_a_whole():
    x, parts = torch.ones(3), [0, 2]

    def run():
        out = torch.zeros(3)
        double_into(out, x + 1, 2, parts)
        return out

    graph = HOST.capture(run)
    parts.append(1)  # too late
    x.fill_(4)
    graph.replay()
    assert graph.out.tolist() == [10, 0, 10]
    assert run().tolist() == [10, 10, 10]


def test_a_launch_within_a_launch_is_a_part_of_it():
    out, x = torch.zeros(1), torch.ones(1)
    graph = HOST.capture(lambda: twice(out, x))
    assert len(graph._calls) == 1
    x.fill_(3)
    graph.replay()
    assert out.item() == 6


def test_a_launch_is_not_looked_into_by_who_only_watches():
    out, x = torch.zeros(3), torch.ones(3)
    graph = HOST.capture(lambda: double_into(out, x, 2, [0]))
    with HOST.never_waiting():
        double_into(out, x, 3, [1])
        graph.replay()
    assert out.tolist() == [2, 3, 0]
    with pytest.raises(CaptureError, match="waited for"), HOST.never_waiting():
        HOST.fetch([x]).wait()


def test_a_launch_returns_nothing():
    with pytest.raises(TypeError, match="returns_something"):
        HOST.capture(lambda: returns_something(X))


# --- random programs -----------------------------------------------------------------------

STATE, INPUT = 0, 1  # the first two registers; each operation appends one or writes in place
OPERATIONS = {
    "add": lambda a, b: a + b,
    "matmul": lambda a, b: torch.matmul(a, b).clamp(-9, 9),
    "view": lambda a, b: a.t(),
    "reshape": lambda a, b: a.t().reshape(3, 3),
    "row": lambda a, b: a[1:2].expand(3, 3),
    "where": lambda a, b: torch.where(a > b, a, 0.0),
    "top": lambda a, b: a.topk(3, dim=-1).values,
    "sort": lambda a, b: b.gather(1, a.argsort(dim=-1)),
    "round": lambda a, b: a.to(torch.float16).float(),
    "zeros": lambda a, b: torch.zeros_like(a).add_(b),
    "softmax": lambda a, b: functional.softmax(a, dim=-1),
    "add_": lambda a, b: a.add_(b.clone()),
    "copy_": lambda a, b: a.copy_(b.clone()),
    "set": lambda a, b: a[0].fill_(2).expand(3, 3),
    "out": lambda a, b: torch.sub(a, b, out=torch.empty_like(a)),
    "index_put": lambda a, b: a.index_put((torch.arange(2),), b[:2]),
}
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 99), st.integers(0, 99)),
    min_size=1,
    max_size=8,
)


def run_program(program, registers):
    registers = list(registers)
    for name, first, second in program:
        a, b = registers[first % len(registers)], registers[second % len(registers)]
        if name in ("add_", "copy_", "set") and 0 in a.stride():
            a = a.contiguous()  # cannot be written where rows share memory
        registers.append(OPERATIONS[name](a, b))
    return registers


@given(PROGRAMS, st.integers(0, 2**31), st.booleans())
def test_replays_do_what_the_run_would(program, seed, inference):
    generator = torch.Generator().manual_seed(seed)
    state, given_ = torch.zeros(3, 3), torch.zeros(3, 3)
    with torch.inference_mode(inference):
        graph = HOST.capture(lambda: run_program(program, (state, given_)))
    for _ in range(2):
        for tensor in (state, given_):
            tensor.copy_(torch.randn(3, 3, generator=generator))
        expected = run_program(program, (state.clone(), given_.clone()))
        graph.replay()
        for found, wanted in zip(graph.out, expected, strict=True):
            assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


# --- copies, memory ------------------------------------------------------------------------


def test_what_is_fetched_is_not_seen_before_it_was_waited_for():
    x = torch.ones(3)
    fetched = HOST.fetch([x, torch.tensor([7])])
    assert fetched.copies[0].isnan().all()
    assert fetched.copies[1].item() != 7
    values, number = fetched.wait()
    assert values.tolist() == [1, 1, 1]
    assert number.item() == 7


def test_the_peak_is_of_what_lives_at_once():
    kept = torch.zeros(256)
    with HOST.measure_peak() as peak:
        for _ in range(3):
            big = torch.zeros(1024)
            views = big[10:].view(-1), kept[3:]
            del big, views
        small = torch.zeros(16)
        both = torch.cat([torch.zeros(512), small])
    assert peak.num_bytes == max(4 * 1024, 4 * (16 + 512 + 528))
    del both


def test_a_host_without_room_is_out_of_memory():
    device = HostDevice(room_bytes=4096)
    with device.limited():
        kept = torch.zeros(512)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.zeros(1024)
        assert device.is_out_of_memory(caught.value)
        torch.zeros(512)
    assert torch.zeros(1024).numel() == 1024  # outside, as ever
    assert not device.is_out_of_memory(RuntimeError("shapes differ"))
    assert device.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    del kept
