"""How much the server takes on before it says 429."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from lmserve.errors import Overloaded, RateLimited
from lmserve.service.quotas import Quotas
from lmserve.service.tenants import no_limits

TIMES_FREE = 7  # alone, a key has seven eighths of the queue; two have seven fifteenths each
MAX_BODY_BYTES = 64 * 2**20  # being read, decoded and tokenised


class Admission:
    """Counts requests waiting or running, and their prompt tokens: of all, and by `quotas` of each
    API key. Of what is free, a key may hold so many times as much: the fuller the queue, the less,
    so that it is never full of one key's requests, nor of those of a few."""

    def __init__(
        self,
        max_requests: int,
        max_tokens: int,
        retry_after_s: Callable[[], int] = lambda: 1,
        quotas: Quotas | None = None,
    ):
        self.max_requests = max_requests
        self._max_tokens = max_tokens
        self._retry_after_s = retry_after_s
        self.quotas = quotas or Quotas(no_limits, time.monotonic)
        self.num_requests = 0
        self.num_tokens = 0

    @property
    def is_pressed(self) -> bool:
        """Half of what it takes is taken."""
        return 2 * self.num_requests >= self.max_requests or 2 * self.num_tokens >= self._max_tokens

    def enter(self, num: int = 1, owner: str = "") -> list[Ticket]:
        """Places for one request and its answers. Raises Overloaded, RateLimited; then nothing is
        held."""
        self.quotas.check(owner, num)
        free = self.max_requests - self.num_requests
        if num > free:
            raise Overloaded(
                f"the server holds {self.num_requests} requests, its limit is {self.max_requests} "
                "(max_queued_requests): try again in a moment",
                retry_after_s=self._retry_after_s(),
            )
        if owner:
            own = self.quotas.of(owner).num_requests
            if own + num - 1 >= TIMES_FREE * (free - num + 1):  # as its last place is given
                raise self._over_share("max_queued_requests")
        self.quotas.enter(owner, num)
        self.num_requests += num
        return [Ticket(self, owner) for _ in range(num)]

    def most_queued(self, owner: str) -> int:
        """Places of an empty queue that one key may hold; who brought none, all."""
        if not owner:
            return self.max_requests
        return -(-TIMES_FREE * self.max_requests // (TIMES_FREE + 1))

    def most_places(self, owner: str) -> int:
        """That it may have at once, by its own limit too."""
        most = self.most_queued(owner)
        own = self.quotas.of(owner).limits.max_requests if owner else None
        return most if own is None else min(own, most)

    def most_tokens(self, owner: str) -> int:
        """Prompt tokens of an empty queue that one key may hold; who brought none, all."""
        return TIMES_FREE * self._max_tokens // (TIMES_FREE + 1) if owner else self._max_tokens

    def add_tokens(self, prompts: Mapping[Ticket, int], *, several: bool = False) -> None:
        """Counts the tokens of one call, `several`: of more than one prompt. Raises Overloaded,
        RateLimited; then nothing is counted."""
        owner, num_tokens = next(iter(prompts)).owner, sum(prompts.values())
        free = self._max_tokens - self.num_tokens
        # a prompt over the limit by itself runs when nothing else does
        if self.num_tokens and num_tokens > free:
            raise Overloaded(
                f"the server holds {self.num_tokens} prompt tokens and its limit "
                f"(max_queued_tokens) is {self._max_tokens}: try again in a moment",
                retry_after_s=self._retry_after_s(),
            )
        if owner and ((own := self.quotas.of(owner).num_tokens) or several):
            if own + num_tokens > TIMES_FREE * (free - num_tokens):
                raise self._over_share("max_queued_tokens")
        self.quotas.add_tokens(owner, num_tokens)
        self.num_tokens += num_tokens
        for ticket, num in prompts.items():
            ticket.num_tokens += num

    def _over_share(self, setting: str) -> RateLimited:
        return RateLimited(
            f"the server's queue is nearly full ({setting}), and this API key has more than its "
            "share of it: try again in a moment",
            "key_share",
            retry_after_s=self._retry_after_s(),
        )


class Ticket:
    """One answer's place, held until `release`."""

    __slots__ = ("_admission", "_released", "job", "num_tokens", "owner")

    def __init__(self, admission: Admission, owner: str = ""):
        self._admission = admission
        self.num_tokens = 0  # of its prompt, once that is counted
        self._released = False
        self.owner = owner
        self.job: Future[Any] | None = None  # its work in a thread, which nobody can stop

    def release(self) -> None:
        """Gives everything back. Idempotent."""
        if not self._released:
            self._released = True
            self._admission.num_requests -= 1
            self._admission.num_tokens -= self.num_tokens
            self._admission.quotas.leave(self.owner, self.num_tokens)


class BodyBytes:
    """Bytes of the bodies whose requests are not running yet."""

    def __init__(self, most: int = MAX_BODY_BYTES):
        self._most = most
        self.num_bytes = 0

    @contextmanager
    def counting(self) -> Iterator[Callable[[int], None]]:
        """Gives what counts the bytes of one body as they come, or as they go where there are
        fewer than none; it raises Overloaded. At the end they are given back."""
        own = 0

        def count(num_bytes: int) -> None:
            nonlocal own
            # a body over the limit by itself is read when there is no other
            over = num_bytes > 0 and self.num_bytes + num_bytes > self._most
            if over and self.num_bytes > own:
                raise Overloaded(
                    f"the server is reading {self.num_bytes} bytes of requests, its limit is "
                    f"{self._most}: try again in a moment"
                )
            own += num_bytes
            self.num_bytes += num_bytes

        try:
            yield count
        finally:
            self.num_bytes -= own
