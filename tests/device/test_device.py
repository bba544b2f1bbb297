"""What every device does, the CPU and where there is one a GPU."""

from __future__ import annotations

import gc
from array import array

import numpy as np
import pytest
import torch

from lmserve.device.base import Device
from lmserve.device.select import choose_device, device_for
from lmserve.errors import SettingsError


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    return device_for(torch.device(request.param))


def test_it_is_where_tensors_go(device):
    tensor = device.upload(array("q", [1, 2]))
    assert tensor.device == device.torch_device
    assert torch.zeros(1, device=device.torch_device).device == device.torch_device


@pytest.mark.parametrize("code", "bBhilqfd")
def test_an_upload_has_the_numbers_type(device, code):
    tensor = device.upload(array(code, [1, 2]))
    assert tensor.tolist() == [1, 2]
    assert tensor.dtype.itemsize == array(code).itemsize
    assert device.upload(array(code)).shape == (0,)


def test_an_upload_is_a_copy(device):
    numbers, floats = array("q", [1, 2]), np.ones((2, 2), dtype=np.float32)
    first, second = device.upload(numbers), device.upload(floats)
    numbers[0] = 9
    floats[:] = 9
    assert first.tolist() == [1, 2]
    assert second.tolist() == [[1, 1], [1, 1]]


def test_what_cannot_be_written_can_be_uploaded(device):
    numbers = np.broadcast_to(np.frombuffer(b"\x01\x02", dtype=np.uint8), (2, 2))[:, ::-1]
    assert device.upload(numbers).tolist() == [[2, 1], [2, 1]]
    assert device.upload_together([numbers])[0].tolist() == [[2, 1], [2, 1]]


def test_many_uploads_do_not_overwrite_each_other(device):
    found = [device.upload(array("q", [number] * 1000)) for number in range(50)]
    assert [tensor.sum().item() for tensor in found] == [1000 * number for number in range(50)]


def test_several_arrays_go_up_together(device):
    arrays = [
        array("q", [1, 2, 3]),
        np.array([[1, 2], [3, 4]], dtype=np.int32).T,
        array("f"),
        np.array([True, False]),
        np.array([0.5], dtype=np.float64),
    ]
    found = device.upload_together(arrays)
    assert [tensor.dtype for tensor in found] == [
        *(torch.int64, torch.int32, torch.float32, torch.bool, torch.float64)
    ]
    for tensor, numbers in zip(found, arrays, strict=True):
        assert tensor.tolist() == np.asarray(numbers).tolist()
        assert (tensor.storage_offset() * tensor.element_size()) % 16 == 0
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 1
    assert device.upload_together([]) == []


def test_what_is_fetched_is_as_it_was_asked_for(device):
    x = device.upload(array("f", [1, 2, 3]))
    fetched = device.fetch([x, x[1:], x.view(3, 1).t()])
    x.fill_(9)  # after it
    values, part, turned = fetched.wait()
    assert values.device.type == "cpu"
    assert (values.tolist(), part.tolist(), turned.tolist()) == ([1, 2, 3], [2, 3], [[1, 2, 3]])
    assert fetched.wait()[0].tolist() == [1, 2, 3]
    assert device.fetch([]).wait() == []


def test_graphs_that_share_a_pool_keep_their_outputs_apart(device):
    x, pool = device.upload(array("f", range(64))), device.graph_pool()
    graphs = [device.capture(lambda by=by: (x * by).sin() + 1, pool) for by in (1, 2, 3)]
    x.add_(1)
    for graph in graphs:
        graph.replay()
    for by, graph in enumerate(graphs, 1):
        assert torch.equal(graph.out, (x * by).sin() + 1)


def test_a_graph_writes_in_place_and_reads_what_is_there_now(device):
    state = device.upload(array("q", [0, 0, 0, 0]))
    slots, values = device.upload(array("q", [1, 2])), device.upload(array("q", [5, 6]))

    def run() -> torch.Tensor:
        state.index_copy_(0, slots, values + state[0])
        return state.sum()

    graph = device.capture(run)
    state.fill_(0)
    slots.copy_(device.upload(array("q", [3, 0])))
    graph.replay()
    assert state.tolist() == [6, 0, 0, 5]
    assert graph.out.item() == 11
    graph.replay()
    assert state.tolist() == [12, 0, 0, 11]


@pytest.mark.parametrize("what", ["upload", "fetch"])
def test_nothing_crosses_while_a_graph_is_captured(device, what):
    x, is_captured = device.upload(array("f", [1, 2])), []

    def run() -> None:
        if is_captured:  # the first run is not
            device.upload(array("f", [1])) if what == "upload" else device.fetch([x])
        is_captured.append(True)

    with pytest.raises(RuntimeError, match=f"{what} while a graph is captured"):
        device.capture(run)
    assert device.fetch([device.upload(array("q", [3])) + 1]).wait()[0].tolist() == [4]
    graph = device.capture(lambda: x + 1)  # the device is as before
    graph.replay()
    assert graph.out.tolist() == [2, 3]
    assert gc.isenabled()


def test_a_step_that_must_not_wait_is_told_where_it_does(device):
    x, weight = device.upload(array("f", range(6))), device.upload(array("f", [2]))
    graph = device.capture(lambda: x * 3)
    with torch.inference_mode(), device.never_waiting():
        first = device.upload(array("q", [1, 2]))
        graph.replay()
        chosen = (x * weight).index_select(0, first) + graph.out[:2]
        fetched = device.fetch([chosen])
    assert fetched.wait()[0].tolist() == [2, 7]
    for waits in (
        lambda: x.sum().item(),
        lambda: x[x > 1],
        lambda: torch.tensor([1, 2], device=device.torch_device),
        lambda: torch.frombuffer(array("f", [1] * 6), dtype=torch.float32).to(x.device) + x,
    ):
        with pytest.raises(RuntimeError), device.never_waiting():
            waits()
    assert x.sum().item() == 15


def test_the_peak_is_what_was_taken_and_given_back(device):
    with device.measure_peak() as peak:
        big = torch.zeros(2**22, device=device.torch_device)
        del big
    assert 2**24 <= peak.num_bytes < 2**26


def test_a_failure_is_told_from_a_want_of_memory(device):
    with pytest.raises(Exception) as caught:
        torch.empty(2**50, dtype=torch.uint8, device=device.torch_device)
    assert device.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2, device=device.torch_device) + torch.zeros(3, device=device.torch_device)
    assert not device.is_out_of_memory(caught.value)
    assert not device.is_out_of_memory(KeyError("out of memory"))
    assert device.is_out_of_memory(torch.OutOfMemoryError("of the allocator"))


def test_what_is_free_is_some_memory(device):
    before = device.free_bytes()
    device.release_cached()
    device.synchronize()
    assert before > 2**20


def test_a_cuda_device_has_a_capability(device):
    assert (device.capability() > (0, 0)) == (device.torch_device.type == "cuda")
    assert device.num_multiprocessors() >= 1
    assert device.has_bfloat16() in (True, False)


# --- by name -------------------------------------------------------------------------------


def test_there_is_one_of_each():
    assert device_for(torch.device("cpu")) is device_for(torch.device("cpu", 0))


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(SettingsError, match=f"--device '{name}'"):
        choose_device(name)


def test_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
