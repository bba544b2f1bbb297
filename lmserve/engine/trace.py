"""What the engine does when, in Chrome's trace format: https://ui.perfetto.dev opens the file.

One track has the spans of each step, some have a number each, and every request has its own, from
its submission to its end. The file is written as the engine runs, so memory is bounded; where the
engine dies it lacks its last bracket, which readers of the format do not miss.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

from lmserve.errors import SettingsError
from lmserve.messages import EngineStats, SequenceOutput

if TYPE_CHECKING:
    from lmserve.engine.plan import StepPlan  # numpy, which the server process does without

log = logging.getLogger(__name__)

MAX_BYTES = 2**29  # of a file: larger ones no browser opens
MAX_EVENTS = 2000  # in memory
MAX_WAIT_NS = 1_000_000_000  # of an event there
STEPS = 1  # the thread that steps


class Trace:
    """Takes no note of anything: what the engine has where nobody asked for a trace."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """What happens in a `with` block. Spans nest."""
        return _NOTHING

    def submitted(self, rid: int) -> None:
        """A request begins to wait."""

    def stepped(
        self, plan: StepPlan, outputs: Sequence[SequenceOutput], stats: EngineStats
    ) -> None:
        """A step's plan was run and came to this. Called within the step's span."""

    def aborted(self, rids: Iterable[int]) -> None:
        """Of these requests nothing more comes."""

    def close(self) -> None:
        """The engine ends."""


_NOTHING = nullcontext()
OFF = Trace()


def open_trace(path: str | None) -> Trace:
    """Raises SettingsError."""
    return OFF if path is None else FileTrace(Path(path).expanduser())


class FileTrace(Trace):
    """Written to a file, whose events are in the order of their times. Not thread-safe."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES):
        try:
            self._file = path.open("w", encoding="ascii")
        except OSError as error:
            raise SettingsError(
                f"profile: cannot write {path} ({error.strerror or error}); name a file in a "
                "directory that exists"
            ) from error
        self._path = path
        self._pid = os.getpid()
        self._zero_ns = self._flushed_ns = perf_counter_ns()
        self._events: list[tuple[int, int, str]] = []  # began, minus its length, the rest of it
        self._depth = 0
        self._step_ns = 0  # when the outermost span began
        self._numbers: dict[str, int] = {}
        self._phases: dict[int, str] = {}  # of requests, by rid
        self._bytes_left = max_bytes
        self._file.write("[\n")
        self._file.write(f"{self._named('process_name', 'lmserve engine')},\n")
        self._file.write(self._named("thread_name", "steps"))

    def _named(self, what: str, name: str) -> str:
        return (
            f'{{"name":"{what}","ph":"M","ts":0,"pid":{self._pid},"tid":{STEPS},'
            f'"args":{{"name":"{name}"}}}}'
        )

    # --- spans ----------------------------------------------------------------------------

    def span(self, name: str) -> AbstractContextManager[None]:
        return _Span(self, name)

    def begin(self) -> int:
        """When the span began."""
        now = perf_counter_ns()
        if not self._depth:
            self._step_ns = now
        self._depth += 1
        return now

    def end(self, name: str, began_ns: int) -> None:
        now = perf_counter_ns()
        length = now - began_ns
        rest = f'"name":"{name}","ph":"X","dur":{length / 1000:.3f}'
        self._events.append((began_ns, -length, rest))
        self._depth -= 1
        if self._depth:
            return
        if len(self._events) > MAX_EVENTS or now - self._flushed_ns > MAX_WAIT_NS:
            self._flushed_ns = now
            self._flush()

    # --- numbers and requests -------------------------------------------------------------

    def submitted(self, rid: int) -> None:
        now = perf_counter_ns()
        self._note(now, rid, f"request {rid}", "b")
        self._enter(now, rid, "queued")

    def stepped(
        self, plan: StepPlan, outputs: Sequence[SequenceOutput], stats: EngineStats
    ) -> None:
        now = perf_counter_ns()
        self._count(self._step_ns, "rows", "a step", len(plan.rows))
        self._count(self._step_ns, "tokens", "a step", plan.num_tokens)
        used = stats.blocks_total - stats.blocks_free - stats.blocks_cached
        self._count(now, "KV blocks", "used", used)
        self._count(now, "requests", "waiting", stats.num_waiting)
        phases = self._phases
        for row in plan.rows:
            if phases.get(row.rid) == "queued":
                self._leave(self._step_ns, row.rid)
                self._enter(self._step_ns, row.rid, "prefill")
        for output in outputs:
            if output.token_ids and phases.get(output.rid) == "prefill":
                self._leave(now, output.rid)
                self._enter(now, output.rid, "decode")
            if output.finish is not None:
                self._finish(now, output.rid, output.finish)

    def aborted(self, rids: Iterable[int]) -> None:
        now = perf_counter_ns()
        for rid in rids:
            self._finish(now, rid, "abort")

    def _enter(self, now_ns: int, rid: int, phase: str) -> None:
        self._phases[rid] = phase
        self._note(now_ns, rid, phase, "b")

    def _leave(self, now_ns: int, rid: int) -> None:
        self._note(now_ns, rid, self._phases.pop(rid), "e")

    def _finish(self, now_ns: int, rid: int, finish: str) -> None:
        if rid in self._phases:
            self._leave(now_ns, rid)
            self._note(now_ns, rid, f"request {rid}", "e", f',"args":{{"finish":"{finish}"}}')

    def _note(self, now_ns: int, rid: int, name: str, kind: str, more: str = "") -> None:
        rest = f'"name":"{name}","cat":"request","ph":"{kind}","id":"{rid}"{more}'
        self._events.append((now_ns, 0, rest))

    def _count(self, now_ns: int, name: str, kind: str, number: int) -> None:
        """Shown as "name kind"."""
        if self._numbers.get(name) != number:
            self._numbers[name] = number
            rest = f'"name":"{name}","ph":"C","args":{{"{kind}":{number}}}'
            self._events.append((now_ns, 0, rest))

    # --- the file -------------------------------------------------------------------------

    def _flush(self) -> None:
        """What has happened, in order: nothing that comes later began before. Called where no
        span is open."""
        events, self._events = self._events, []
        if self._bytes_left <= 0:
            return
        events.sort(key=lambda event: event[:2])  # the longer first, so that spans nest
        where = f'"pid":{self._pid},"tid":{STEPS}'
        text = "".join(
            [
                f',\n{{{rest},"ts":{(began - self._zero_ns) / 1000:.3f},{where}}}'
                for began, _, rest in events
            ]
        )
        self._bytes_left -= len(text)
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            log.warning("%s: the trace ends here: %s", self._path, error)
            self._bytes_left = 0
            return
        if self._bytes_left <= 0:
            log.warning("%s is full: the trace ends here", self._path)

    def close(self) -> None:
        self._flush()
        try:
            self._file.write("\n]\n")
            self._file.close()
        except OSError as error:
            log.warning("%s: the trace lacks its end: %s", self._path, error)


class _Span(AbstractContextManager[None]):
    __slots__ = ("_began_ns", "_name", "_trace")

    def __init__(self, trace: FileTrace, name: str):
        self._trace = trace
        self._name = name

    def __enter__(self) -> None:
        self._began_ns = self._trace.begin()

    def __exit__(self, *_: object) -> None:
        self._trace.end(self._name, self._began_ns)
