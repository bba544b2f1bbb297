"""How much the service has to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """At one moment."""

    num_requests: int  # being prepared, waiting or running
    num_tokens: int  # of their prompts
    oldest_wait_s: float  # since the oldest came that the engine has not begun with
    num_by_owner: Mapping[str, int]  # of those that wait or run; of calls without a key, none
    is_draining: bool
