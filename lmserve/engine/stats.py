"""What the engine tells about itself after each step."""

from __future__ import annotations

from lmserve.engine.scheduler import Scheduler
from lmserve.messages import EngineStats


class StatsKeeper:
    """Counts steps; reads the rest off the scheduler and the cache."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._steps = 0
        self._step_tokens = 0

    def count_step(self, num_tokens: int) -> EngineStats:
        self._steps += 1
        self._step_tokens = num_tokens
        return self.snapshot()

    def snapshot(self) -> EngineStats:
        scheduler, cache = self._scheduler, self._scheduler.cache
        free, cached, pinned, held, total = cache.counts()
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            blocks_total=total,
            blocks_free=free,
            blocks_cached=cached,
            blocks_pinned=pinned,
            blocks_held=held,
            steps=self._steps,
            step_tokens=self._step_tokens,
            preemptions=scheduler.num_preemptions,
            prefix_queries=cache.prefix_queries,
            prefix_hits=cache.prefix_hits,
            **self._speculation(),
        )

    def _speculation(self) -> dict[str, int]:
        speculation = self._scheduler.speculation
        if speculation is None:
            return {}
        return {
            "spec_proposals": speculation.num_proposals,
            "spec_proposed_tokens": speculation.num_proposed,
            "spec_accepted_tokens": speculation.num_accepted,
        }
