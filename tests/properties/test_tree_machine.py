"""Any order of calls leaves the trees that plain lists of messages say; every prompt goes on from
the very tokens that were run along its line, and where none were, is that of the flat history."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import tempfile
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import (
    EngineError,
    InvalidField,
    MessageNotFound,
    SessionExists,
    SessionFull,
    SessionNotFound,
)
from lmserve.messages import unpack_ids
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import UNSET, Node, SessionKey, Sessions, Turn
from lmserve.settings import EngineSettings, SessionSettings, Settings
from lmserve.types import GenerateRequest

T = TypeVar("T")

KEYS = [SessionKey("", "1"), SessionKey("", "sess_2"), SessionKey("somebody", "1")]
KEY = st.sampled_from(KEYS)
WHERE = st.integers(0, 30)  # of a tree's messages, the first is before all of them
TEXTS = st.text("ab<|> \né", max_size=4)
PIECES = st.lists(st.lists(st.sampled_from([97, 195, 169, 256, 300]), max_size=3), max_size=2)


@dataclasses.dataclass(frozen=True)
class Known:
    """A message, and the way to it: all told anew, so that nothing is shared with the store."""

    line: tuple[int, ...]  # ids, its own the last
    messages: tuple[str, ...]  # of the line, as JSON
    ids: tuple[int, ...] | None  # that were run for the line, up to here
    history: tuple[int, ...] = ()  # those of the last answer on the line that was run


ROOT = Known((), (), ())


class Tree:
    def __init__(self) -> None:
        self.all: list[Known] = [ROOT]
        self.head = ROOT
        self.title: str | None = None

    def add(self, after: Known, id: int, message: dict[str, Any], ids: list[int] | None) -> Known:
        known_ids = None if ids is None else tuple(ids)
        ran = message["role"] == "assistant" and known_ids is not None
        added = Known(
            (*after.line, id),
            (*after.messages, json.dumps(message)),
            known_ids,
            known_ids if ran and known_ids is not None else after.history,
        )
        self.all.append(added)
        self.head = added
        return added


def at(node: Known) -> int | None:
    return node.line[-1] if node.line else None


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


class TreeMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.trees: dict[SessionKey, Tree] = {}
        self.runner = asyncio.Runner()
        self.run(self.start_all())
        for key in KEYS[1:]:
            self.run(self.sessions.create(key))
            self.trees[key] = Tree()

    async def start_all(self) -> None:
        engine = EngineSettings(engine="mock", session_len=600)
        self.engine = FakeEngine(engine)
        await self.engine.start()
        settings = Settings(engine=engine)
        self.service = Service(self.engine, settings, Metrics(self.engine, settings))
        await self.open()

    async def open(self) -> None:
        self.sessions = Sessions(self.service, SessionSettings(data_dir=self.folder.name))
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

    def refused(self, call: Coroutine[Any, Any, Any], *errors: type[Exception]) -> None:
        try:
            self.run(call)
        except errors:
            self.engine._scripts.clear()
        else:
            raise AssertionError("it was not refused")

    # --- turns ------------------------------------------------------------------------

    @rule(key=KEY, texts=st.lists(TEXTS, min_size=1, max_size=2), pieces=PIECES,
          finish=st.sampled_from(["stop", "stop", "length"]))  # fmt: skip
    def go_on(self, key, texts, pieces, finish) -> None:
        tree = self.trees.get(key)
        self.engine.will_say(*pieces, finish=finish)
        self.answer(key, tree.head if tree else ROOT, UNSET, texts, sum(pieces, []))

    @rule(key=KEY, where=WHERE, text=TEXTS, pieces=PIECES)
    def edit(self, key, where, text, pieces) -> None:
        node = self.node(key, where)
        self.engine.will_say(*pieces)
        self.answer(key, node, at(node), [text], sum(pieces, []))

    @rule(key=KEY, where=WHERE, pieces=PIECES)
    def regenerate(self, key, where, pieces) -> None:
        node = self.node(key, where)
        self.engine.will_say(*pieces)
        if not node.line or json.loads(node.messages[-1])["role"] == "assistant":
            request = GenerateRequest(messages=[])
            call = self.sessions.turn(key, request, keep=True, after=at(node), must_exist=True)
            self.refused(call, InvalidField, SessionNotFound)
            return
        self.answer(key, node, at(node), [], sum(pieces, []))

    @rule(key=KEY, where=WHERE, how=st.sampled_from(["cancel", "leave", "fail", "delete"]))
    def cut_short(self, key, where, how) -> None:
        node = self.node(key, where)
        if how == "fail":
            self.engine.will_fail("out of luck", "some")
        else:
            self.engine.will_hang("some")
        self.answer(key, node, at(node), ["q"], [], how)

    def answer(
        self,
        key: SessionKey,
        node: Known,
        after: Any,
        texts: list[str],
        said: list[int],
        how: str = "read",
    ) -> None:
        new = [user(text) for text in texts]

        async def call() -> tuple[str, Turn]:
            request = GenerateRequest(messages=new)
            turn = await self.sessions.turn(key, request, keep=True, after=after, must_exist=True)
            text = ""
            if how == "read":
                text, _ = await collect(turn.generation)
            elif how == "cancel":
                assert self.sessions.cancel(key)
            elif how == "delete":
                await self.sessions.delete(key)
            elif how == "leave":
                with turn.generation.lease():
                    pass
            else:
                try:
                    await collect(turn.generation)
                except EngineError:
                    pass
            await turn.settled()
            return text, turn

        tree = self.trees.get(key)
        if tree is None:
            self.refused(call(), SessionNotFound)
            return
        num_asked = len(self.engine.submits)
        try:
            text, turn = self.run(call())
        except SessionFull:
            self.engine._scripts.clear()
            assert len(self.engine.submits) == num_asked
            return
        prompt = unpack_ids(self.engine.submits[-1].token_ids)
        self.check_prompt(node, new, prompt)
        if how == "delete":
            del self.trees[key]
        if how in ("delete", "fail"):
            assert (turn.input_ids, turn.answer) == ([], None)
            return
        assert len(turn.input_ids) == len(new)
        for id, message in zip(turn.input_ids, new, strict=True):
            node = tree.add(node, id, message, prompt if message is new[-1] else None)
        assert turn.answer is not None
        answer = {"role": "assistant", "content": text}
        tree.add(node, turn.answer.id, answer, [*prompt, *said])

    def check_prompt(self, node: Known, new: list[dict[str, Any]], prompt: list[int]) -> None:
        if not new and node.ids is not None:
            assert tuple(prompt) == node.ids, "another answer has the very prompt"
        elif node.history:
            assert tuple(prompt[: len(node.history)]) == node.history
        else:
            flat = [*map(json.loads, node.messages), *new]
            request = GenerateRequest(messages=flat)
            (ids,) = self.run(self.service.encode([request], add_bos=True))
            assert prompt == ids, "it is the prompt of the flat history"

    # --- other calls ------------------------------------------------------------------

    @rule(key=KEY, texts=st.lists(TEXTS, max_size=2), title=st.sampled_from([None, "t"]))
    def create(self, key, texts, title) -> None:
        messages = [user(text) for text in texts]
        call = self.sessions.create(key, title=title, messages=messages)
        if key in self.trees:
            self.refused(call, SessionExists)
            return
        self.run(call)
        tree = self.trees[key] = Tree()
        tree.title = title
        node = ROOT
        for stored, message in zip(self.run(self.sessions.nodes(key)), messages, strict=True):
            node = tree.add(node, stored.id, message, None)

    @rule(key=KEY, where=WHERE, text=TEXTS)
    def add(self, key, where, text) -> None:
        node = self.node(key, where)
        new = [user(text), {"role": "assistant", "content": "b" + text}]
        call = self.sessions.add(key, new, after=at(node))
        if key not in self.trees:
            self.refused(call, SessionNotFound)
            return
        for added, message in zip(self.run(call), new, strict=True):
            assert (added.parent, added.message) == (at(node), message)
            node = self.trees[key].add(node, added.id, message, None)

    @rule(key=KEY, where=WHERE, title=st.sampled_from([UNSET, None, "new"]))
    def move_the_head(self, key, where, title) -> None:
        node = self.node(key, where)
        call = self.sessions.update(key, head=at(node), title=title)
        if key not in self.trees:
            self.refused(call, SessionNotFound)
            return
        assert self.run(call).head == at(node)
        self.trees[key].head = node
        if title is not UNSET:
            self.trees[key].title = title

    @rule(key=KEY, new_key=KEY, where=WHERE)
    def fork(self, key, new_key, where) -> None:
        node = self.node(key, where)
        call = self.sessions.fork(key, new_key, at=at(node))
        if key not in self.trees or new_key in self.trees:
            self.refused(call, SessionNotFound, SessionExists)
            return
        self.run(call)
        if not node.line:  # none is named: all of the head's line
            node = self.trees[key].head
        tree = self.trees[new_key] = Tree()
        tree.title = self.trees[key].title
        ways = {known.line: known for known in self.trees[key].all}
        copy = ROOT
        for num, stored in enumerate(self.run(self.sessions.nodes(new_key)), 1):
            old = ways[node.line[:num]]
            ids = None if old.ids is None else list(old.ids)
            copy = tree.add(copy, stored.id, json.loads(old.messages[-1]), ids)
        assert len(copy.line) == len(node.line)

    @rule(key=KEY, new_key=KEY)
    def carry(self, key, new_key) -> None:
        if key not in self.trees:
            self.refused(self.sessions.export(key), SessionNotFound)
            return
        exported = json.loads(json.dumps(self.run(self.sessions.export(key))))
        call = self.sessions.import_(new_key, exported)
        if new_key in self.trees:
            self.refused(call, SessionExists)
            return
        self.run(call)
        old, new = self.trees[key], Tree()
        new.title = old.title
        copies = {(): ROOT}
        # in the order they were made, which is that of their ids
        stored = self.run(self.sessions.nodes(new_key))
        for known, twin in zip(old.all[1:], stored, strict=True):
            parent = copies[known.line[:-1]]
            message = json.loads(known.messages[-1])
            copies[known.line] = new.add(parent, twin.id, message, None)
        new.head = copies[old.head.line]
        self.trees[new_key] = new

    @rule(key=KEY, forgive=st.booleans())
    def end(self, key, forgive) -> None:
        if forgive:
            self.run(self.sessions.end(key))
        elif key in self.trees:
            self.run(self.sessions.delete(key))
        else:
            self.refused(self.sessions.delete(key), SessionNotFound)
        self.trees.pop(key, None)

    @rule(key=KEY, other=KEY, where=WHERE)
    def name_anothers_message(self, key, other, where) -> None:
        node = self.node(other, where)
        if key == other or not node.line:
            return
        self.refused(
            self.sessions.update(key, head=at(node), title="taken"),
            MessageNotFound,
            SessionNotFound,
        )

    @rule()
    def restart(self) -> None:
        self.run(self.sessions.close())
        self.run(self.open())

    def node(self, key: SessionKey, where: int) -> Known:
        nodes = self.trees[key].all if key in self.trees else [ROOT]
        return nodes[where % len(nodes)]

    # --- what is kept -----------------------------------------------------------------

    @invariant()
    def what_is_kept_is_what_was_said(self) -> None:
        if not hasattr(self, "runner"):
            return
        self.run(self.check())

    async def check(self) -> None:
        text = await self.service.model_text()
        for key in KEYS:
            tree = self.trees.get(key)
            if tree is None:
                continue
            info = await self.sessions.info(key)
            assert (info.head, info.title) == (at(tree.head), tree.title)
            nodes = await self.sessions.nodes(key)
            assert [node.id for node in nodes] == [at(known) for known in tree.all[1:]]
            assert info.num_messages == len(nodes)
            assert _lines(await self.sessions.line(key)) == tree.head.messages
            for known in tree.all[1:]:
                line = await self.sessions.keeper.run(
                    lambda store, key=key, known=known: store.load(key, text.text_key, at(known))
                )
                assert tuple(map(json.dumps, line.messages)) == known.messages
                assert (None if line.token_ids is None else tuple(line.token_ids)) == known.ids
                held = () if line.history is None else tuple(line.history.token_ids)
                assert held == known.history
        for owner in ("", "somebody"):
            listed, _ = await self.sessions.list(owner, limit=10)
            expected = {key.id for key in self.trees if key.owner == owner}
            assert {info.id for info in listed} == expected
        assert not self.sessions.turns.busy


def _lines(nodes: list[Node]) -> tuple[str, ...]:
    return tuple(json.dumps(node.message) for node in nodes)


def test_trees_hold_what_was_said() -> None:
    num_examples = max(1, settings().max_examples // 4)
    run_state_machine_as_test(
        TreeMachine,
        settings=settings(max_examples=num_examples, stateful_step_count=30),
    )
