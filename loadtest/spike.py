"""A shape: few users, of a sudden ten times as many, and few again: does it come back?"""

from __future__ import annotations

from locust import LoadTestShape

FEW, MANY = 6, 60
STAGES = ((40, FEW), (70, MANY), (130, FEW))  # until so many seconds: so many users


class Spike(LoadTestShape):
    def tick(self) -> tuple[int, float] | None:
        seconds = self.get_run_time()
        return next(((users, 30) for until, users in STAGES if seconds < until), None)
