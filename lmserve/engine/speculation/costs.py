"""What one more token in a step costs, measured as the engine runs."""

from __future__ import annotations

KEPT = 1 / 256  # weight of the latest step
OUTLIER = 2.0  # no step counts for more than this many times what was expected of it
# Until enough was seen: a token more costs this share of what one of a plain step costs.
GUESSED_SHARE = 0.2
GUESSED_WEIGHT = 0.5


class StepCosts:
    """Of steps that ran no prompts: a line for each number of rows, and one through all of them
    for numbers that were rare so far. Where the weights are read once for all tokens lines are
    flat, where each token is computed they are steep."""

    def __init__(self) -> None:
        self._all = Line()
        self._lines: dict[int, Line] = {}  # by rows

    def add(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        self._all.add(num_tokens, seconds)
        self._lines.setdefault(num_rows, Line()).add(num_tokens, seconds)

    def share(self, num_rows: int) -> float:
        """Of a token more beside so many, in what each of those costs: from 0, where it is free,
        to 1, where it is computed by itself."""
        guessed = self._all.share(num_rows, GUESSED_SHARE)
        line = self._lines.get(num_rows)
        return guessed if line is None else line.share(num_rows, guessed)


class Line:
    """Seconds of a step by the number of its tokens, through the latest steps."""

    __slots__ = ("_covariance", "_num_steps", "_seconds", "_tokens", "_variance")

    def __init__(self) -> None:
        self._num_steps = 0
        self._tokens = self._seconds = 0.0  # means
        self._variance = self._covariance = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        self._num_steps += 1
        if self._num_steps > 1:
            seconds = min(seconds, OUTLIER * self._of(num_tokens, GUESSED_SHARE))
        weight = max(KEPT, 1 / self._num_steps)
        more_tokens, more_seconds = num_tokens - self._tokens, seconds - self._seconds
        self._tokens += weight * more_tokens
        self._seconds += weight * more_seconds
        self._variance = (1 - weight) * (self._variance + weight * more_tokens**2)
        covariance = self._covariance + weight * more_tokens * more_seconds
        self._covariance = (1 - weight) * covariance

    def share(self, num_tokens: int, guessed: float) -> float:
        """As `StepCosts.share`, which is `guessed` before anything was seen."""
        if not self._num_steps:
            return guessed
        seconds = self._of(num_tokens, guessed)
        return min(1.0, max(0.0, self._slope(guessed) * num_tokens / seconds)) if seconds else 1.0

    def _of(self, num_tokens: int, guessed: float) -> float:
        return max(0.0, self._seconds + self._slope(guessed) * (num_tokens - self._tokens))

    def _slope(self, guessed: float) -> float:
        slope = guessed * self._seconds / self._tokens
        known = self._covariance + GUESSED_WEIGHT * slope
        return known / (self._variance + GUESSED_WEIGHT)
