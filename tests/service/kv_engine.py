"""A fake engine that has KV to pin, save and restore."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from lmserve.bridge.fake import FakeEngine
from lmserve.bridge.mailbox import Mailbox
from lmserve.errors import EngineError, EngineUnavailable
from lmserve.messages import NOBODY, EngineInfo, Tenant, unpack_ids
from lmserve.sampling import SamplingParams

NUM_BLOCKS = 100
BYTES = 10  # of KV a token, and a token a block


class KvEngine(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.known: list[list[int]] = []  # token ids whose KV is in the cache
        self.pins: dict[str, list[int]] = {}
        self.calls: list[str] = []
        self.fault: str | None = None  # what is wrong with the next files
        self.slow: asyncio.Event | None = None  # files wait for it

    def _make_info(self) -> EngineInfo:
        made = super()._make_info()
        self.known, self.pins = [], {}  # it is a new engine
        return msgspec.structs.replace(
            made, num_blocks=NUM_BLOCKS, block_size=1, kv_cache_bytes=NUM_BLOCKS * BYTES
        )

    def submit(
        self,
        token_ids: list[int],
        sampling: SamplingParams,
        priority: int = 0,
        tenant: Tenant = NOBODY,
    ) -> Mailbox:
        self.known.append(token_ids)
        return super().submit(token_ids, sampling, priority, tenant)

    async def control(self, verb: str, timeout_s: float = 5.0, **args: Any) -> Any:
        if self.info is None:
            raise EngineUnavailable("there is no engine")
        match verb:
            case "pin":
                self.calls.append(verb)
                self.pins[args["key"]] = ids = self._part(unpack_ids(args["token_ids"]))
                return {
                    "num_tokens": len(ids),
                    "num_blocks": len(ids),
                    "pinned_blocks": self.num_pinned,
                }
            case "unpin":
                self.calls.append(verb)
                self.pins.pop(args["key"], None)
                return {"pinned_blocks": self.num_pinned}
            case "save" | "restore":
                self.calls.append(verb)
                if self.slow is not None:
                    await self.slow.wait()
                if self.fault is not None:
                    raise EngineError(self.fault)
                path = Path(args["path"])
                work = self._save if verb == "save" else self._restore
                return await asyncio.to_thread(work, path, args)
            case _:
                return await super().control(verb, timeout_s)

    @property
    def num_pinned(self) -> int:
        """What several have in common counts once."""
        return len({tuple(ids[:end]) for ids in self.pins.values() for end in range(len(ids))})

    def _save(self, path: Path, args: dict[str, Any]) -> dict[str, int]:
        ids = self._part(unpack_ids(args["token_ids"]))
        if ids:
            path.write_bytes(msgspec.json.encode(ids).ljust(BYTES * len(ids)))
        return {"num_tokens": len(ids), "num_bytes": BYTES * len(ids)}

    def _restore(self, path: Path, args: dict[str, Any]) -> dict[str, int]:
        wanted = unpack_ids(args["token_ids"])
        before = self._part(wanted)
        self.known.append(_common(msgspec.json.decode(path.read_bytes()), wanted))
        known = self._part(wanted)
        return {"num_tokens": len(known) - len(before), "num_known": len(known)}

    def _part(self, ids: list[int]) -> list[int]:
        return max((_common(ids, known) for known in self.known), key=len, default=[])


def _common(ids: list[int], others: list[int]) -> list[int]:
    num = next((i for i, (a, b) in enumerate(zip(ids, others)) if a != b), None)  # noqa: B905
    return ids[: min(len(ids), len(others)) if num is None else num]
