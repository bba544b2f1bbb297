"""Products with one row: by a kernel of ours, where it is measured to be the fastest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

from lmserve.device.base import Device
from lmserve.fused.base import Activation, Ops, RowTiling
from lmserve.models.linear import DenseLinear, Linear

log = logging.getLogger(__name__)

Run = Callable[[], object]
GAIN = 0.99  # of the library's time: below this ours is taken
CLOSE = 1e-2  # of the whole of a result
NUM_REPEATS = 3


class RowLinear:
    """Dense; one row by the kernel."""

    def __init__(self, dense: DenseLinear, ops: Ops, tiling: RowTiling):
        self.dense = dense
        self.ops = ops
        self.tiling = tiling

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) != 1:
            return self.dense(x)
        return self.ops.row_product(x, self.dense.weight, self.dense.bias, self.tiling)

    def gated(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        """The gate of the product."""
        if len(x) != 1:
            return self.ops.gate(self.dense(x), activation)
        weight, bias = self.dense.weight, self.dense.bias
        return self.ops.row_product(x, weight, bias, self.tiling, activation)


def fastest(
    name: str, products: Sequence[Linear], ops: Ops, seconds: Callable[[Run], float]
) -> list[Linear]:
    """Of the same product on every layer, so that no cache holds the weights that are measured."""
    dense = [each for each in products if type(each) is DenseLinear]
    if len(dense) < len(products):  # quantised, or tiled to be deterministic
        return list(products)
    weight = dense[0].weight
    x = torch.randn(1, weight.shape[1], device=weight.device).to(weight.dtype)
    expected = dense[0](x).float()
    least = library = seconds(lambda: [product(x) for product in dense])
    chosen: list[Linear] = list(dense)
    for tiling in ops.row_tilings:
        ours = [RowLinear(product, ops, tiling) for product in dense]
        distance = (ours[0](x).float() - expected).norm()
        if not distance <= CLOSE * expected.norm():
            log.warning("products with one row: %s by %s is wrong", name, tiling)
            continue
        taken = seconds(lambda ours=ours: [product(x) for product in ours])  # type: ignore[misc]
        if taken < min(least, GAIN * library):
            least, chosen = taken, list(ours)
    num_bytes = sum(product.weight.nbytes for product in dense)
    log.info(
        "products with one row: %s by %s, %.2f TB/s (the library %.2f)",
        name,
        f"{ops.name} {chosen[0].tiling}" if isinstance(chosen[0], RowLinear) else "the library",
        num_bytes / least / 1e12,
        num_bytes / library / 1e12,
    )
    return chosen


def seconds_on(device: Device) -> Callable[[Run], float]:
    """Measures in a graph, as decoding runs."""

    def seconds(run: Run) -> float:
        graph = device.capture(run)
        graph.replay()
        device.synchronize()
        times = []
        for _ in range(NUM_REPEATS):
            start = time.perf_counter()
            graph.replay()
            device.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds
