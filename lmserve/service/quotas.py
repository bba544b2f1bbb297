"""What the holder of one API key has taken of the server, and what is left.

Rates are buckets: each holds a minute's worth, is full at first, and is refilled evenly. A request
takes one of its key's requests, and of its tokens those of its prompt as it comes and those of its
answer as that ends, which may leave less than nothing: then the key waits until it is refilled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lmserve.errors import InvalidField, RateLimited
from lmserve.service.tenants import LimitsOf
from lmserve.types import KeyLimits

MINUTE_S = 60.0
_NONE = 1e-6  # of a request or token: rounding
_MOST_IDLE = 256  # quotas kept before it is looked which of them matter


class Bucket:
    """Of what a key may have in a minute."""

    __slots__ = ("_at_s", "_left", "_most")

    def __init__(self, most: int, now_s: float):
        self._most = most
        self._left = float(most)
        self._at_s = now_s

    def refill(self, most: int, now_s: float) -> None:
        """`most`: a minute's worth as the limit is now."""
        if most != self._most:
            self._left += most - self._most
            self._most = most
        passed_s, self._at_s = now_s - self._at_s, now_s
        self._left = min(float(most), self._left + passed_s * most / MINUTE_S)

    def take(self, num: int) -> None:
        self._left -= num

    @property
    def remaining(self) -> int:
        return max(0, math.floor(self._left + _NONE))

    def full_in_s(self) -> float:
        return self.has_in_s(self._most)

    def has_in_s(self, num: float) -> float:
        """Seconds from the last look until there is so much, or all that it holds."""
        missing = min(num, self._most) - self._left
        return missing * MINUTE_S / self._most if missing > _NONE else 0.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one key, as its client is told."""

    name: str  # requests, tokens
    limit: int  # a minute
    remaining: int
    reset_s: float  # until nothing is taken any more


class Quota:
    """Of one owner."""

    __slots__ = ("limits", "num_requests", "num_tokens", "requests", "tokens")

    def __init__(self) -> None:
        self.limits = KeyLimits()
        self.num_requests = 0  # waiting or running
        self.num_tokens = 0  # of their prompts
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None

    def look(self, limits: KeyLimits, now_s: float) -> None:
        """Refills what is limited; a bucket is made when there is a limit for it."""
        self.limits = limits
        self.requests = _refilled(self.requests, limits.requests_per_minute, now_s)
        self.tokens = _refilled(self.tokens, limits.tokens_per_minute, now_s)

    def rates(self) -> list[Rate]:
        buckets = (
            ("requests", self.limits.requests_per_minute, self.requests),
            ("tokens", self.limits.tokens_per_minute, self.tokens),
        )
        return [
            Rate(name, most, bucket.remaining, bucket.full_in_s())
            for name, most, bucket in buckets
            if most is not None and bucket is not None
        ]

    @property
    def is_untouched(self) -> bool:
        buckets = (self.requests, self.tokens)
        return not self.num_requests and not any(b and b.full_in_s() for b in buckets)


def _refilled(bucket: Bucket | None, most: int | None, now_s: float) -> Bucket | None:
    if most is None:
        return None
    bucket = bucket or Bucket(most, now_s)
    bucket.refill(most, now_s)
    return bucket


class Quotas:
    """Lives on the service's loop. Who brought no key has none, and no limits."""

    def __init__(
        self,
        limits_of: LimitsOf,
        clock: Callable[[], float],
        retry_after_s: Callable[[], int] = lambda: 1,  # until one of the engine's places is free
    ):
        self._limits_of = limits_of
        self._clock = clock
        self._retry_after_s = retry_after_s
        self._quotas: dict[str, Quota] = {}

    def of(self, owner: str) -> Quota:
        """As it is now."""
        quota = self._quotas.get(owner)
        if quota is None:
            if len(self._quotas) >= _MOST_IDLE:
                self._forget()
            quota = self._quotas[owner] = Quota()
        quota.look(self._limits_of(owner), self._clock())
        return quota

    def _forget(self) -> None:
        now_s = self._clock()
        for owner, quota in list(self._quotas.items()):
            quota.look(self._limits_of(owner), now_s)
            if quota.is_untouched:
                del self._quotas[owner]

    def check(self, owner: str, num_answers: int) -> None:
        """Whether a request for so many answers may come. Raises RateLimited, InvalidField."""
        if not owner:
            return
        quota = self.of(owner)
        limits, most = quota.limits, quota.limits.max_requests
        if most is not None and num_answers > most:
            raise InvalidField(
                f"the request makes {num_answers} answers at once, and this API key may have "
                f"{most} (max_key_requests): ask for fewer",
                param="n",
            )
        if most is not None and quota.num_requests + num_answers > most:
            raise RateLimited(
                f"this API key has {quota.num_requests} answers waiting or running, and its limit "
                f"is {most} (max_key_requests): wait until some have ended",
                "key_requests",
                retry_after_s=self._retry_after_s(),
            )
        if quota.requests is not None and (wait_s := quota.requests.has_in_s(1)):
            raise RateLimited(
                f"this API key may send {limits.requests_per_minute} requests a minute "
                f"(key_requests_per_minute): try again in {wait_s:.1f} s",
                "key_rate",
                retry_after_s=_whole(wait_s),
            )
        if quota.tokens is not None and (wait_s := quota.tokens.has_in_s(1)):
            raise self._too_many_tokens(limits, wait_s)

    def enter(self, owner: str, num_answers: int) -> None:
        """It has come."""
        if not owner:
            return
        quota = self.of(owner)
        quota.num_requests += num_answers
        if quota.requests is not None:
            quota.requests.take(1)

    def add_tokens(self, owner: str, num_tokens: int) -> None:
        """Of a prompt. One over the limit by itself may come once nothing was taken for a minute.
        Raises RateLimited."""
        if not owner:
            return
        quota = self.of(owner)
        if quota.tokens is not None:
            if wait_s := quota.tokens.has_in_s(num_tokens):
                raise self._too_many_tokens(quota.limits, wait_s)
            quota.tokens.take(num_tokens)
        quota.num_tokens += num_tokens

    def spend(self, owner: str, num_tokens: int) -> None:
        """Of an answer, or whatever else was run."""
        if owner and (tokens := self.of(owner).tokens) is not None:
            tokens.take(num_tokens)

    def leave(self, owner: str, num_prompt_tokens: int) -> None:
        """One answer has ended."""
        if not owner:
            return
        quota = self._quotas[owner]
        quota.num_requests -= 1
        quota.num_tokens -= num_prompt_tokens

    def _too_many_tokens(self, limits: KeyLimits, wait_s: float) -> RateLimited:
        return RateLimited(
            f"this API key may use {limits.tokens_per_minute} tokens a minute, of prompts and "
            f"answers (key_tokens_per_minute): try again in {wait_s:.1f} s",
            "key_tokens",
            retry_after_s=_whole(wait_s),
        )


def _whole(wait_s: float) -> int:
    return max(1, math.ceil(wait_s))
