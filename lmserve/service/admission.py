"""How much the server takes on before it says 429."""

from __future__ import annotations

from lmserve.errors import Overloaded


class Admission:
    """Counts requests waiting or running, and their prompt tokens."""

    def __init__(self, max_requests: int, max_tokens: int):
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self.num_requests = 0
        self.num_tokens = 0

    def enter(self) -> Ticket:
        """A place for one request. Raises Overloaded; then nothing is held."""
        if self.num_requests >= self._max_requests:
            raise Overloaded(
                f"the server holds {self.num_requests} requests, its limit "
                "(max_queued_requests): try again in a moment"
            )
        self.num_requests += 1
        return Ticket(self)

    def _add_tokens(self, num_tokens: int) -> None:
        # a prompt over the limit by itself runs when nothing else does
        if self.num_tokens and self.num_tokens + num_tokens > self._max_tokens:
            raise Overloaded(
                f"the server holds {self.num_tokens} prompt tokens and its limit "
                f"(max_queued_tokens) is {self._max_tokens}: try again in a moment"
            )
        self.num_tokens += num_tokens


class Ticket:
    """One request's place, held until `release`."""

    __slots__ = ("_admission", "_num_tokens", "_released")

    def __init__(self, admission: Admission):
        self._admission = admission
        self._num_tokens = 0
        self._released = False

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
