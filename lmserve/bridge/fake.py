"""An engine without a model, on the server's own loop.

In tests it plays scripts and can be made to hang or die:

    fake = FakeEngine()
    fake.will_say("Hel", "lo")      # the next request: one step a piece, then its end token
    fake.will_fail("out of luck")   # the one after it

Without a script, and as `--engine mock`, it says words until max_tokens: one step a turn of the
loop for all requests, as the real engine would, so that the front end alone can be measured.
Log probabilities, embeddings and progress are invented (`inventions.py`) where asked for.
All run at once, unless `will_queue` says how many do.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from lmserve.bridge import assets
from lmserve.bridge.handle import ASLEEP, EngineHandle, Health, State
from lmserve.bridge.inventions import HIDDEN_SIZE
from lmserve.bridge.mailbox import Mailbox
from lmserve.bridge.scripts import Piece, Script, script_after, steps_of
from lmserve.errors import EngineError, EngineUnavailable
from lmserve.messages import (
    NOBODY,
    EngineInfo,
    EngineStats,
    SequenceOutput,
    Submit,
    Tenant,
    Update,
    pack_ids,
)
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings


class FakeEngine(EngineHandle):
    def __init__(self, settings: EngineSettings | None = None, *, record: bool = True):
        settings = settings or EngineSettings(engine="mock")
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.submits: list[Submit] = []  # with `record`, all that were asked for
        self.updates: list[Update] = []
        self.aborts: list[int] = []  # rids
        self._record = record
        self._interval_s = 1 / settings.mock_tokens_s if settings.mock_tokens_s else 0.0
        self._due_s: float | None = None  # the next step's time, where there is a pace
        self._session_len = settings.session_len or 8192
        self._max_batch_size = settings.max_batch_size or 64  # as on a CPU
        self._state: State = "loading"
        self._state_changed = asyncio.Event()
        self._rids = itertools.count(1)
        self._scripts: deque[list[SequenceOutput]] = deque()  # for requests to come
        self._mailboxes: dict[int, Mailbox] = {}  # open ones
        self._playing: dict[int, Script] = {}  # those of them that have more to say
        # of open ones, the prompt and the script
        self._given: dict[int, tuple[list[int], list[SequenceOutput] | None]] = {}
        self._begun: dict[int, int] = {}  # the step before their first, of open ones
        self._queue: list[tuple[int, int, SamplingParams]] = []  # priority, rid; a heap
        self._places: int | None = None
        self._next_step: asyncio.Handle | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    # --- what the next request without a script of its own will see ---

    def will_say(self, *pieces: Piece, finish: Literal["stop", "length"] = "stop") -> FakeEngine:
        """One step a piece; `stop` ends with the end token, in the last piece's step."""
        steps = steps_of(pieces) or [SequenceOutput(0, b"")]
        if finish == "stop":
            steps[-1].token_ids += pack_ids([assets.EOS_ID])
            steps[-1].stop_token_id = assets.EOS_ID
        steps[-1].finish = finish
        self._scripts.append(steps)
        return self

    def will_fail(self, message: str, *pieces: Piece) -> FakeEngine:
        """Says the pieces, then fails, and fails alone."""
        failure = SequenceOutput(0, b"", finish="error", error=message)
        self._scripts.append([*steps_of(pieces), failure])
        return self

    def will_hang(self, *pieces: Piece) -> FakeEngine:
        """Says the pieces, then nothing more until aborted."""
        self._scripts.append(steps_of(pieces))
        return self

    def will_queue(self, places: int) -> FakeEngine:
        """From now on so many run together; the others wait, as in the real engine."""
        self._places = self._max_batch_size = places
        if self.info is not None:
            self.info = self._make_info()
        return self

    # --- what happens to the whole engine ---

    def hang(self) -> None:
        """No step is made, and health is `stuck`, until `resume`."""
        self._set_state("stuck")
        self._unschedule()

    def resume(self) -> None:
        """Ends `hang`; after `die` or `sleep`, the engine is ready again."""
        self.info = self._make_info()
        self._set_state("ready")
        self._schedule()

    def die(self) -> None:
        """Every open request fails with `died`; the engine restarts until `resume`."""
        self.info = None
        self._set_state("restarting")
        for mailbox in self._take_all():
            mailbox.end("error", "the engine process died while this request ran", died=True)

    def give_up(self) -> None:
        """As after `restart_wait_s`: what waits for the next engine is told to come again."""
        retry_after_s = self.health().retry_after_s
        for mailbox in self._take_all():
            mailbox.end("error", "the next engine is not ready yet", retry_after_s=retry_after_s)

    # --- the handle ---

    async def start(self) -> None:
        self._folder = await asyncio.to_thread(_make_folder)
        await asyncio.to_thread(assets.write_assets, Path(self._folder.name))
        self.info = self._make_info()
        self._set_state("ready")

    async def wait_ready(self) -> EngineInfo:
        while self._state != "ready":
            if self._state == "closed":
                raise EngineUnavailable("the engine is closed")
            await self.changed()
        assert self.info is not None
        return self.info

    def submit(
        self,
        token_ids: list[int],
        sampling: SamplingParams,
        priority: int = 0,
        tenant: Tenant = NOBODY,
    ) -> Mailbox:
        if self._state not in ("ready", "stuck"):
            raise self._unavailable()
        rid = next(self._rids)
        if self._record:
            self.submits.append(Submit(rid, pack_ids(token_ids), sampling, priority, tenant))
        script = self._scripts.popleft() if self._scripts else None
        self._mailboxes[rid] = mailbox = Mailbox(rid)
        self._given[rid] = (token_ids, script)
        if self._places is None:
            self._begin(rid, sampling)
        else:
            heapq.heappush(self._queue, (priority, rid, sampling))
        self._schedule()
        return mailbox

    def update(self, mailbox: Mailbox, sampling: SamplingParams) -> None:
        rid = mailbox.rid
        if rid not in self._mailboxes:
            return
        if self._record:
            self.updates.append(Update(rid, sampling))
        if rid in self._begun:
            num_steps = self.stats.steps - self._begun[rid]
            self._playing[rid] = self._script(rid, sampling, num_steps)
        else:
            self._queue = [(p, r, sampling if r == rid else s) for p, r, s in self._queue]
        self._schedule()

    def abort(self, mailbox: Mailbox) -> None:
        if self._mailboxes.pop(mailbox.rid, None) is None:
            return
        if self._record:
            self.aborts.append(mailbox.rid)
        self._playing.pop(mailbox.rid, None)
        self._forget(mailbox.rid)
        if any(rid == mailbox.rid for _, rid, _ in self._queue):
            self._queue = [entry for entry in self._queue if entry[1] != mailbox.rid]
            heapq.heapify(self._queue)
        self._count()
        self._schedule()
        mailbox.end("abort")

    async def control(self, verb: str, timeout_s: float = 5.0, **args: Any) -> Any:
        if self._state == "stuck":
            raise EngineUnavailable(f"the engine did not answer {verb!r}")
        if self._state != "ready":
            raise self._unavailable()
        match verb:
            case "ping":
                return "pong"
            case "stats":
                return msgspec.structs.asdict(self.stats)
            case "check" | "clear_cache":
                return None
            case "pin" | "unpin" | "save" | "restore":
                try:
                    return _nothing_known(verb, **args)
                except TypeError as error:
                    raise EngineError(str(error)) from error
            case _:
                raise EngineError(f"unknown control verb {verb!r}")

    async def sleep(self) -> None:
        if self._state == "closed":
            raise self._unavailable()
        self.info = None
        self._set_state("sleeping")
        for mailbox in self._take_all():
            mailbox.end("abort")

    async def wake(self) -> None:
        if self._state == "sleeping":
            self.resume()
        while self._state != "ready":
            if self._state in ("sleeping", "closed"):
                raise self._unavailable()
            await self.changed()

    def health(self) -> Health:
        asleep = self._state == "sleeping"
        return Health(self._state, ASLEEP if asleep else f"the mock engine is {self._state}", 0.0)

    async def changed(self) -> None:
        self._state_changed.clear()
        await self._state_changed.wait()

    async def close(self) -> None:
        self._set_state("closed")
        for mailbox in self._take_all():
            mailbox.end("abort")
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(folder.cleanup)

    # --- steps ---

    def _schedule(self) -> None:
        if self._next_step is not None:
            return
        work = self._playing or (self._queue and self._has_place)
        if not work or self._state != "ready":
            self._due_s = None
            return
        loop = asyncio.get_running_loop()
        if self._interval_s:
            now = time.monotonic()
            # after the step before was due, not done: a loop that is late does not slow the pace
            self._due_s = (now if self._due_s is None else self._due_s) + self._interval_s
            self._next_step = loop.call_later(max(0.0, self._due_s - now), self._step)
        else:
            self._next_step = loop.call_soon(self._step)

    def _unschedule(self) -> None:
        if self._next_step is not None:
            self._next_step.cancel()
            self._next_step = self._due_s = None

    def _step(self) -> None:
        self._next_step = None
        mailboxes, playing = self._mailboxes, self._playing
        admitted = self._admit() if self._queue else ()
        self.stats.steps += 1
        self.stats.step_tokens = len(playing)
        self.stats.sent_s = self._due_s or time.monotonic()
        if self.on_step is not None:
            self.on_step(self.stats)
        for rid in admitted:
            if rid in mailboxes:
                mailboxes[rid].put(SequenceOutput(rid, b"", queue_s=0.0))
        for rid, script in list(playing.items()):
            if rid not in playing:  # another's listener aborted it in this very step
                continue
            output = next(script, None)
            if output is None or output.finish is not None:  # it hangs, or ends
                del playing[rid]
            if output is not None:
                mailbox = mailboxes[rid]
                if output.finish is not None:
                    del mailboxes[rid]
                    self._forget(rid)
                mailbox.put(output)
        self._count()
        self._schedule()

    @property
    def _has_place(self) -> bool:
        return self._places is None or len(self._begun) < self._places

    def _admit(self) -> list[int]:
        """Those who begin with this step, first come, first served among equals."""
        admitted = []
        while self._queue and self._has_place:
            _, rid, sampling = heapq.heappop(self._queue)
            self._begin(rid, sampling)
            admitted.append(rid)
        self._count()
        return admitted

    def _begin(self, rid: int, sampling: SamplingParams) -> None:
        self._begun[rid] = self.stats.steps
        self._playing[rid] = self._script(rid, sampling)

    def _script(self, rid: int, sampling: SamplingParams, num_steps: int = 0) -> Script:
        prompt, given = self._given[rid]
        return script_after(given, prompt, sampling, num_steps)

    def _forget(self, rid: int) -> None:
        self._given.pop(rid, None)
        self._begun.pop(rid, None)

    def _count(self) -> None:
        self.stats.num_waiting = len(self._queue)
        self.stats.num_running = len(self._mailboxes) - len(self._queue)

    def _take_all(self) -> Iterable[Mailbox]:
        self._unschedule()
        mailboxes, self._mailboxes = self._mailboxes, {}
        for open_ones in (self._playing, self._given, self._begun, self._queue):
            open_ones.clear()
        self._count()
        return mailboxes.values()

    def _unavailable(self) -> EngineUnavailable:
        asleep = self._state == "sleeping"
        return EngineUnavailable(
            f"the engine is {ASLEEP}" if asleep else f"the engine is not ready ({self._state})",
            retry_after_s=self.health().retry_after_s,
        )

    def _set_state(self, state: State) -> None:
        if self._state != "closed":
            self._state = state
            self._state_changed.set()

    def _make_info(self) -> EngineInfo:
        assert self._folder is not None, "not started"
        return EngineInfo(
            model_path="mock",
            architecture="mock",
            num_parameters=0,
            vocab_size=assets.VOCAB_SIZE,
            max_model_len=self._session_len,
            block_size=1,
            num_blocks=0,
            kv_cache_bytes=0,
            max_batch_size=self._max_batch_size,
            dtype="none",
            device="none",
            attention="none",
            weights="none",
            hidden_size=HIDDEN_SIZE,
            deterministic=True,
            pid=os.getpid(),
            tokenizer_file=os.path.join(self._folder.name, "tokenizer.json"),
            chat_template=assets.CHAT_TEMPLATE,
            bos_token=None,
            eos_token=assets.IM_END,
            eos_token_ids=(assets.EOS_ID,),
        )


def _nothing_known(
    verb: str, *, token_ids: bytes = b"", key: str = "", path: str = ""
) -> dict[str, int]:
    """What an engine without KV answers."""
    match verb:
        case "pin":
            return {"num_tokens": 0, "num_blocks": 0, "pinned_blocks": 0}
        case "unpin":
            return {"pinned_blocks": 0}
        case "save":
            return {"num_tokens": 0, "num_bytes": 0}
        case _:
            return {"num_tokens": 0, "num_known": 0}


def _make_folder() -> tempfile.TemporaryDirectory[str]:
    """Not in a user's cache: a mock leaves nothing behind. What one left that was killed, the next
    removes."""
    for left in Path(tempfile.gettempdir()).glob("lmserve-mock-*-*"):
        pid = left.name.split("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"lmserve-mock-{os.getpid()}-")
