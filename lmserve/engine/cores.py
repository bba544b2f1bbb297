"""How the threads of a step share the cores with everything else."""

from __future__ import annotations

import os


def share_the_cores() -> None:
    """Threads that wait for the others of a step spin briefly, then sleep. Spinning for long, as
    is OpenMP's default, they keep the others from a core whenever anything else runs: steps took
    ten times as long. Sleeping at once makes the steps of a quiet machine half as long again.
    OpenMP reads this once, when torch is first imported; a user's own choice stands."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
