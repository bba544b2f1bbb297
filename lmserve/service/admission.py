"""How much the server takes on before it says 429."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from lmserve.errors import Overloaded

MAX_BODY_BYTES = 64 * 2**20  # being read, decoded and tokenised


class Admission:
    """Counts requests waiting or running, and their prompt tokens."""

    def __init__(
        self, max_requests: int, max_tokens: int, retry_after_s: Callable[[], int] = lambda: 1
    ):
        self.max_requests = max_requests
        self._max_tokens = max_tokens
        self._retry_after_s = retry_after_s
        self.num_requests = 0
        self.num_tokens = 0

    @property
    def is_pressed(self) -> bool:
        """Half of what it takes is taken."""
        return 2 * self.num_requests >= self.max_requests or 2 * self.num_tokens >= self._max_tokens

    def enter(self) -> Ticket:
        """A place for one request. Raises Overloaded; then nothing is held."""
        if self.num_requests >= self.max_requests:
            raise Overloaded(
                f"the server holds {self.num_requests} requests, its limit "
                "(max_queued_requests): try again in a moment",
                retry_after_s=self._retry_after_s(),
            )
        self.num_requests += 1
        return Ticket(self)

    def _add_tokens(self, num_tokens: int) -> None:
        # a prompt over the limit by itself runs when nothing else does
        if self.num_tokens and self.num_tokens + num_tokens > self._max_tokens:
            raise Overloaded(
                f"the server holds {self.num_tokens} prompt tokens and its limit "
                f"(max_queued_tokens) is {self._max_tokens}: try again in a moment",
                retry_after_s=self._retry_after_s(),
            )
        self.num_tokens += num_tokens


class Ticket:
    """One request's place, held until `release`."""

    __slots__ = ("_admission", "_num_tokens", "_released", "job")

    def __init__(self, admission: Admission):
        self._admission = admission
        self._num_tokens = 0
        self._released = False
        self.job: Future[Any] | None = None  # its work in a thread, which nobody can stop

    def add_tokens(self, num_tokens: int) -> None:
        """Counts the prompt once its length is known. Raises Overloaded."""
        self._admission._add_tokens(num_tokens)
        self._num_tokens += num_tokens

    def release(self) -> None:
        """Gives everything back. Idempotent."""
        if not self._released:
            self._released = True
            self._admission.num_requests -= 1
            self._admission.num_tokens -= self._num_tokens


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
