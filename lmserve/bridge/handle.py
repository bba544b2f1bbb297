"""The gate to the engine: submit (and update), abort, control, outputs.

Three implementations pass one conformance suite (`tests/bridge/test_conformance.py`): a child
process (the default), a thread (debugging, embedded use) and a fake (tests, `--engine mock`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lmserve.bridge.mailbox import Mailbox
from lmserve.messages import NOBODY, EngineInfo, EngineStats, Tenant
from lmserve.sampling import SamplingParams

State = Literal["loading", "ready", "stuck", "restarting", "sleeping", "failed", "closed"]

ASLEEP = "asleep: POST /wakeup"  # the reason while sleeping

# An engine that loads tells no progress that could be measured; one that sleeps, failed or is
# closed does not come by itself.
_SOON_S, _LATE_S = 5, 60


@dataclass(frozen=True, slots=True)
class Health:
    state: State
    reason: str  # one line for people: the loading stage, how long a step has been stuck, …
    heard_s: float  # seconds since the engine's loop last answered

    @property
    def ok(self) -> bool:
        return self.state == "ready"

    @property
    def retry_after_s(self) -> int:
        """When to ask again."""
        if self.ok:
            return 1
        return _SOON_S if self.state in ("loading", "restarting", "stuck") else _LATE_S


class EngineHandle(ABC):
    """One engine, seen from the server's event loop. Not thread-safe: use it on its loop."""

    #: What the engine told when it became ready, while it restarts the one before; None until
    #: then, and while none is wanted.
    info: EngineInfo | None
    #: The statistics of the last step heard of.
    stats: EngineStats
    #: What its last start took, until it was ready; 0 until it was.
    start_s: float = 0.0
    #: Called once a step, before its outputs arrive; must not raise.
    on_step: Callable[[EngineStats], None] | None = None

    @abstractmethod
    async def start(self) -> None:
        """Starts the engine and returns at once; `wait_ready` waits for the model."""

    @abstractmethod
    async def wait_ready(self) -> EngineInfo:
        """Waits until the engine is ready. Raises SetupError when it cannot start."""

    @abstractmethod
    def submit(
        self,
        token_ids: list[int],
        sampling: SamplingParams,
        priority: int = 0,
        tenant: Tenant = NOBODY,
    ) -> Mailbox:
        """Queues one request and returns where its outputs arrive. Never blocks.

        Raises EngineUnavailable when there is no engine to take it (loading, gone): nothing was
        queued then. One that is stuck may only be slow, and takes it. While it restarts, requests
        wait for `restart_wait_s`, those of the dead engine too that were told nothing yet.
        """

    @abstractmethod
    def update(self, mailbox: Mailbox, sampling: SamplingParams) -> None:
        """The request goes on with these settings from the engine's next step on; one that has
        ended, or ends meanwhile, is not changed. Where it is as long as it may be now, it ends
        with `length`. Never blocks."""

    @abstractmethod
    def abort(self, mailbox: Mailbox) -> None:
        """Ends the request now: its mailbox gets its terminal `abort` (unless it has ended
        already) and the engine forgets it before its next step. Synchronous, idempotent."""

    @abstractmethod
    async def control(self, verb: str, timeout_s: float = 5.0, **args: Any) -> Any:
        """One rare request to the engine's loop: `ping`, `stats`, `check`, `clear_cache`, and

            pin      key, token_ids: keeps what is known of them from eviction, and no more what
                     `key` kept before  -> num_tokens, num_blocks, pinned_blocks (of all keys)
            unpin    key  -> pinned_blocks
            save     token_ids, path: writes the KV that is known of them to a file
                     -> num_tokens (0: nothing is known, no file is written), num_bytes
            restore  token_ids, path: takes in what of the file is a beginning of them
                     -> num_tokens (newly known), num_known

        with token ids as `pack_ids` makes them, and a `namespace` if it is not 0. A save or
        restore that is no longer waited for goes on.

        Raises EngineUnavailable when no answer came in time, EngineError when it failed.
        """

    @abstractmethod
    async def sleep(self) -> None:
        """Ends open requests (`abort`), stops the engine and gives its memory back; returns when
        that is done, whatever the engine was at. `submit` raises EngineUnavailable until `wake`.
        Idempotent; the last call of `sleep` and `wake` wins. Raises EngineUnavailable once
        closed."""

    @abstractmethod
    async def wake(self) -> None:
        """Returns when the engine is ready; starts it first where it sleeps. Raises
        EngineUnavailable where it cannot start, or is stopped again meanwhile."""

    @abstractmethod
    def health(self) -> Health:
        """What `/health` says. Costs nothing; the engine's pulse is heard in the background."""

    @abstractmethod
    async def changed(self) -> None:
        """Waits until `health` turns: the state, or the reason while loading."""

    @abstractmethod
    async def close(self) -> None:
        """Stops the engine; open mailboxes get their terminal `abort`. Idempotent."""
