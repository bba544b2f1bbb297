"""What a control asks of the engine, beside its steps."""

from __future__ import annotations

from typing import Any

import msgspec

from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.cache.pins import Pins
from lmserve.engine.kv_store import KVStore
from lmserve.engine.stats import StatsKeeper
from lmserve.messages import Control, ControlReply, unpack_ids


class Verbs:
    def __init__(self, cache: CacheManager, kv: KVStore, stats: StatsKeeper):
        self._cache = cache
        self._pins = Pins(cache.pool, cache.tree)
        self._kv = kv
        self._stats = stats

    def run(self, control: Control) -> list[ControlReply]:
        try:
            answer = self._answer(control)
        except Exception as error:
            return [ControlReply(control.id, error=one_line(error))]
        return [] if answer is None else [ControlReply(control.id, answer)]

    def _answer(self, control: Control) -> dict[str, Any] | None:
        """None where a chore will reply."""
        args = control.args
        match control.verb:
            case "pin":
                tokens = unpack_ids(args["token_ids"])
                return self._pins.pin(args["key"], tokens, args.get("namespace", 0))
            case "unpin":
                return self._pins.unpin(args["key"])
            case "save":
                self._kv.save(control.id, **args)
                return None
            case "restore":
                self._kv.restore(control.id, **args)
                return None
            case "check":
                self._cache.check()
                return self._cache.counts()._asdict()
            case "clear_cache":
                return {"blocks_freed": self._cache.clear()}
            case "stats":
                return msgspec.structs.asdict(self._stats.snapshot())
            case verb:
                raise ValueError(f"the engine knows no verb {verb!r}")


def one_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
