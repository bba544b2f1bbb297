"""Any order of calls leaves the sessions that a plain list of messages says, and the tokens kept
are those that were run."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import EngineError, SessionBusy, SessionFull, SessionLost
from lmserve.messages import unpack_ids
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import SessionKey, Sessions, Turn
from lmserve.settings import EngineSettings, SessionSettings, Settings
from lmserve.types import GenerateRequest

T = TypeVar("T")

KEYS = [SessionKey(owner, id) for owner in ("", "somebody") for id in ("1", "-2")]
TEXTS = st.text("ab<|> \n\u00e9", max_size=6)
PIECES = st.lists(st.lists(st.sampled_from([97, 195, 169, 256, 300]), max_size=3), max_size=3)
TTL_S = 100.0


@dataclasses.dataclass
class Known:
    """What a session should hold."""

    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ids: list[int] | None = None  # of all of them, where the last call ran them
    used_s: float = 0.0


class SessionsMachine(RuleBasedStateMachine):
    @initialize(max_sessions=st.sampled_from([10, 2]))
    def start(self, max_sessions: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now_s = 1000.0
        self.known: dict[SessionKey, Known] = {}
        self.lost: set[SessionKey] = set()
        self.max_sessions = max_sessions
        self.runner = asyncio.Runner()
        self.run(self.start_all())

    async def start_all(self) -> None:
        engine = EngineSettings(engine="mock", session_len=400)
        self.engine = FakeEngine(engine)
        await self.engine.start()
        settings = Settings(engine=engine)
        self.service = Service(self.engine, settings, Metrics(self.engine, settings))
        await self.open()

    async def open(self) -> None:
        options = SessionSettings(
            data_dir=self.folder.name, session_ttl_s=TTL_S, max_sessions=self.max_sessions
        )
        self.sessions = Sessions(self.service, options, clock=lambda: self.now_s)
        await self.sessions.open()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(20):
                return await work

        return self.runner.run(bounded())

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        self.run(self.stop_all())
        self.runner.close()
        self.folder.cleanup()

    async def stop_all(self) -> None:
        self.service.close()
        await self.sessions.close()
        await self.engine.close()
        assert self.service.inflight == 0

    # --- calls ------------------------------------------------------------------------

    @rule(key=st.sampled_from(KEYS), text=TEXTS, pieces=PIECES, keep=st.sampled_from([1, 1, 0]),
          finish=st.sampled_from(["stop", "stop", "length"]),
          form=st.sampled_from(["one", "one", "one", "two", "again", "text"]))  # fmt: skip
    def turn(self, key, text, pieces, keep, finish, form) -> None:
        self.engine.will_say(*pieces, finish=finish)
        self.answer(key, self.request(key, text, form), [i for p in pieces for i in p], bool(keep))

    @rule(key=st.sampled_from(KEYS), text=TEXTS)
    def stopped_by_a_string(self, key, text) -> None:
        self.engine.will_say("one ", "two")
        request = dataclasses.replace(self.request(key, text, "one"), stop=("tw",))
        self.answer(key, request, list(b"one "), True)

    def request(self, key: SessionKey, text: str, form: str) -> GenerateRequest:
        if form == "text":
            return GenerateRequest(text=text + "!")
        new = [{"role": "user", "content": text}]
        if form == "two":
            new = [{"role": "assistant", "content": "x" + text}, *new]
        held = self.known.get(key, Known()).messages if form == "again" else []
        return GenerateRequest(messages=[*held, *new])

    def answer(
        self, key: SessionKey, request: GenerateRequest, said: list[int], keep: bool
    ) -> None:
        async def call() -> tuple[str, Turn]:
            turn = await self.sessions.turn(key, request, keep=keep)
            text, _ = await collect(turn.generation)
            await turn.settled()
            return text, turn

        before = self.known.get(key, Known())
        try:
            text, turn = self.run(call())
        except SessionLost:
            self.was_lost(key, keep)
            return
        except SessionFull:
            self.engine._scripts.clear()
            if not keep:
                self.known.pop(key, None)
                self.lost.discard(key)
            return
        assert keep is False or key not in self.lost
        self.lost.discard(key)
        prompt = unpack_ids(self.engine.submits[-1].token_ids)
        if before.ids is not None:
            assert turn.history_tokens == len(before.ids)
            assert prompt[: len(before.ids)] == before.ids, "what was run is run on"
        if not keep:
            self.known.pop(key, None)
            return
        if request.text is not None:
            messages = [*before.messages, {"role": "user", "content": request.text}]
        elif before.messages and request.messages[: len(before.messages)] == before.messages:
            messages = list(request.messages)
        else:
            messages = [*before.messages, *request.messages]
        messages.append({"role": "assistant", "content": text})
        self.known[key] = Known(messages, [*prompt, *said], self.now_s)
        self.make_room(key)

    @rule(key=st.sampled_from(KEYS), pieces=PIECES, how=st.sampled_from(["cancel", "leave"]))
    def cut_short(self, key, pieces, how) -> None:
        """Nothing was read of it when it was stopped."""
        self.engine.will_hang(*pieces)

        async def call() -> None:
            turn = await self.sessions.turn(key, self.request(key, "q", "one"), keep=True)
            if how == "cancel":
                assert self.sessions.cancel(key)
            else:
                with turn.generation.lease():
                    pass
            await turn.settled()

        try:
            self.run(call())
        except (SessionLost, SessionFull) as error:
            self.engine._scripts.clear()
            if isinstance(error, SessionLost):
                self.was_lost(key, keep=True)
            return
        assert key not in self.lost
        messages = self.known.get(key, Known()).messages
        prompt = unpack_ids(self.engine.submits[-1].token_ids)
        said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]
        self.known[key] = Known([*messages, *said], prompt, self.now_s)
        self.make_room(key)

    @rule(key=st.sampled_from(KEYS), keep=st.booleans())
    def fail(self, key, keep) -> None:
        self.engine.will_fail("out of luck", "some")

        async def call() -> None:
            turn = await self.sessions.turn(key, self.request(key, "q", "one"), keep=keep)
            try:
                await collect(turn.generation)
            except EngineError:
                await turn.settled()
            else:
                raise AssertionError("it did not fail")

        try:
            self.run(call())
        except SessionLost:
            self.was_lost(key, keep)
        except SessionFull:
            self.engine._scripts.clear()
            if not keep:
                self.known.pop(key, None)
        else:
            self.lost.discard(key)

    @rule(key=st.sampled_from(KEYS), text=TEXTS, again=st.booleans())
    def append(self, key, text, again) -> None:
        before = self.known.get(key, Known())
        new = [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}]
        try:
            self.run(self.sessions.append(key, [*(before.messages if again else []), *new]))
        except SessionLost:
            self.was_lost(key, keep=True)
            return
        assert key not in self.lost
        if before.messages == new and not again:  # the same history, sent as it is
            new = []
        self.known[key] = Known([*before.messages, *new], before.ids if not new else None)
        self.known[key].used_s = self.now_s
        self.make_room(key)

    @rule(key=st.sampled_from(KEYS))
    def end(self, key) -> None:
        self.run(self.sessions.end(key))
        self.known.pop(key, None)
        self.lost.discard(key)

    @precondition(lambda self: len(self.known) < self.max_sessions)
    @rule(key=st.sampled_from(KEYS))
    def end_in_mid_answer(self, key) -> None:
        if key in self.lost:
            return
        self.engine.will_hang("some")

        async def call() -> None:
            request = self.request(key, "q", "one")
            turn = await self.sessions.turn(key, request, keep=True)
            waiter = asyncio.create_task(self.sessions.turn(key, request, keep=True))
            while not self.sessions.turns._waiters.get(key):  # noqa: ASYNC110
                await asyncio.sleep(0)
            await self.sessions.end(key)
            await turn.settled()
            try:
                await waiter
            except SessionBusy:
                return
            raise AssertionError("the waiter was not refused")

        try:
            self.run(call())
        except SessionFull:
            self.engine._scripts.clear()
        else:
            self.known.pop(key, None)

    @rule(key=st.sampled_from(KEYS))
    def cancel_where_nothing_runs(self, key) -> None:
        async def call() -> bool:
            return self.sessions.cancel(key)

        assert not self.run(call())

    # --- time and restarts ------------------------------------------------------------

    @rule(s=st.sampled_from([1.0, 1.0, 60.0, 101.0]))
    def time_passes(self, s) -> None:
        self.now_s += s
        self.run(self.sessions.keeper.sweep())
        for key, known in list(self.known.items()):
            if known.used_s < self.now_s - TTL_S:
                del self.known[key]
                self.lost.add(key)

    @rule()
    def restart(self) -> None:
        self.run(self.sessions.close())
        self.run(self.open())

    def was_lost(self, key: SessionKey, keep: bool) -> None:
        assert keep
        assert key in self.lost
        self.lost.remove(key)
        self.engine._scripts.clear()

    def make_room(self, key: SessionKey) -> None:
        while len(self.known) > self.max_sessions:
            others = [other for other in self.known if other != key]
            oldest = min(others, key=lambda other: self.known[other].used_s)
            ties = [o for o in others if self.known[o].used_s == self.known[oldest].used_s]
            (gone,) = [o for o in ties if not self.run(self.held(o)).messages] or [oldest]
            del self.known[gone]
            self.lost.add(gone)

    # --- what is kept -----------------------------------------------------------------

    async def held(self, key: SessionKey) -> Any:
        text = await self.service.model_text()
        return await self.sessions.keeper.run(lambda store: store.load(key, text.text_key))

    @invariant()
    def what_is_kept_is_what_was_said(self) -> None:
        if not hasattr(self, "runner"):
            return
        for key in KEYS:
            line = self.run(self.held(key))
            known = self.known.get(key, Known())
            assert line.messages == known.messages
            if known.ids is not None:
                assert line.history is not None
                assert line.history.token_ids == known.ids
                assert line.history.num_messages == len(known.messages)
                assert line.num_tokens == len(known.ids)
        assert not self.sessions.turns.busy


def test_sessions_hold_what_was_said() -> None:
    num_examples = max(1, settings().max_examples // 4)
    run_state_machine_as_test(
        SessionsMachine,
        settings=settings(max_examples=num_examples, stateful_step_count=30),
    )
