"""A shape: more users every so often; given beside a scenario."""

from __future__ import annotations

from locust import LoadTestShape

STEP_S, STEP_USERS, NUM_STEPS = 30, 8, 8


class Steps(LoadTestShape):
    def tick(self) -> tuple[int, float] | None:
        step = int(self.get_run_time() // STEP_S)
        return None if step >= NUM_STEPS else ((step + 1) * STEP_USERS, STEP_USERS)
