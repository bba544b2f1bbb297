"""For whom the engine runs a request, made of whose API key asks."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

from lmserve.messages import Tenant
from lmserve.types import KeyLimits

LimitsOf = Callable[[str], KeyLimits]


def no_limits(owner: str) -> KeyLimits:
    return KeyLimits()


class Tenants:
    """`limits_of`: an owner's, as they are now. `isolate`: the KV of one owner's prompts is not
    found by another's."""

    def __init__(self, limits_of: LimitsOf = no_limits, *, isolate: bool = True):
        self.limits_of = limits_of
        self._isolate = isolate
        self._secret = secrets.token_bytes(16)  # nobody can choose another's namespace

    def of(self, owner: str, cache_salt: str = "") -> Tenant:
        return Tenant(owner, self.limits_of(owner).weight, self.namespace(owner, cache_salt))

    def namespace(self, owner: str, cache_salt: str = "") -> int:
        """No keys and no salt: the one that all share."""
        who = owner if self._isolate else ""
        if not (who or cache_salt):
            return 0
        text = f"{who}\0{cache_salt}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, key=self._secret, digest_size=7).digest()
        return int.from_bytes(digest, "little")
