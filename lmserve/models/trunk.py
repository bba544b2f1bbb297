"""The part of a foreign causal LM that ends with hidden states, and what follows it alone.

transformers has no name for "all but the head": what a model does with the head's output (a
scale, a soft cap) is in its forward. So the whole is run over a trunk that is told its result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lmserve.errors import ModelError


class Trunk:
    def __init__(self, module: torch.nn.Module, output: type[Any]):
        if not {"position_ids", "use_cache"} <= inspect.signature(module.forward).parameters.keys():
            raise ModelError("the part before its head takes no position_ids")
        self._module = module
        self._output = output  # what it returns
        self._told: torch.Tensor | None = None
        self._run: Callable[..., Any] = module.forward
        module.forward = self._forward

    @classmethod
    def of(cls, module: torch.nn.Module, run: Callable[[], object]) -> Trunk:
        """Of a causal LM, which `run` runs: what gives hidden states, the last to end."""
        found: list[tuple[torch.nn.Module, type[Any]]] = []

        def watch(part: torch.nn.Module, _args: object, output: Any) -> None:
            if isinstance(getattr(output, "last_hidden_state", None), torch.Tensor):
                found.append((part, type(output)))

        hooks = [part.register_forward_hook(watch) for part in module.modules()]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            raise ModelError("its hidden states are not told apart from its logits")
        return cls(*found[-1])

    def run(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(T, hidden), after the final norm."""
        hidden: torch.Tensor = self._module(
            input_ids=token_ids[None], position_ids=positions[None], use_cache=False
        ).last_hidden_state
        return hidden[0]

    @contextmanager
    def told(self, hidden: torch.Tensor) -> Iterator[None]:
        """Meanwhile it runs nothing and gives these, (T, hidden)."""
        self._told = hidden[None]
        try:
            yield
        finally:
            self._told = None

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._told is None:
            return self._run(*args, **kwargs)
        return self._output(last_hidden_state=self._told)
