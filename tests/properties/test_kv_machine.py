"""Requests, with saves, restores and pins among them: the same answers, and nothing leaks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from lmserve.engine import kv_store
from lmserve.messages import ControlReply, pack_ids
from tests.engine.paged import SLOT, chain
from tests.properties.test_core_machine import CoreMachine

NAMES = ["a.kv", "b.kv"]


class KVMachine(CoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="kv-machine-")
        self.folder = Path(self._folder.name)
        self.num_moves = 0
        self.replies: list[ControlReply] = []

    def draw_text(self, data: st.DataObject) -> list[int]:
        text = data.draw(st.sampled_from(self.texts))
        return text[: data.draw(st.integers(0, len(text)))]

    @precondition(lambda self: hasattr(self, "core"))
    @rule(data=st.data(), verb=st.sampled_from(["save", "restore"]), name=st.sampled_from(NAMES))
    def move(self, data: st.DataObject, verb: str, name: str) -> None:
        args = {"token_ids": pack_ids(self.draw_text(data)), "path": str(self.folder / name)}
        if not self.core.kv.has_jobs:  # a slot or a whole text a turn
            self.core.kv._piece_blocks = data.draw(st.sampled_from([1, 2, 100]))
        assert self.bench.control(verb, **args) is None
        self.num_moves += 1
        self.do_chores(data.draw(st.sampled_from([0, 2, 30])))

    @precondition(lambda self: hasattr(self, "core"))
    @rule(num=st.sampled_from([1, 3, 30]))
    def do_chores(self, num: int) -> None:
        for _ in range(num):
            self.replies += self.core.do_chores()

    @rule(name=st.sampled_from(NAMES), place=st.integers(0, 2**16))
    def damage(self, name: str, place: int) -> None:
        path = self.folder / name
        if path.exists():
            data = bytearray(path.read_bytes())
            data[place % len(data)] ^= 1
            path.write_bytes(data)

    @precondition(lambda self: hasattr(self, "core"))
    @rule(data=st.data(), key=st.sampled_from("xyz"), verb=st.sampled_from(["pin", "unpin"]))
    def keep(self, data: st.DataObject, key: str, verb: str) -> None:
        args = {"token_ids": pack_ids(self.draw_text(data))} if verb == "pin" else {}
        reply = self.bench.control(verb, key=key, **args)
        assert reply is not None and reply.error is None
        pool = self.core.cache.pool
        assert reply.value["pinned_blocks"] == sum(num > 0 for num in pool.pins)

    @invariant()
    def every_node_holds_what_it_says(self) -> None:
        if not hasattr(self, "core"):
            return
        root = self.core.cache.tree._roots.get(0)
        stack = [(child, 0) for child in root.children.values()] if root else []
        while stack:
            node, before = stack.pop()
            kv = chain(node.tokens, before)
            assert self.bench.runner.memory.blocks[node.block][: len(kv)] == kv
            stack += [(child, kv[-1]) for child in node.children.values()]

    @invariant()
    def no_reply_is_told_twice_and_each_says_why(self) -> None:
        assert len(self.replies) <= self.num_moves
        for reply in self.replies:
            assert (reply.error is None) == (reply.value is not None)
            assert reply.error is None or "KV" in reply.error

    def teardown(self) -> None:
        try:
            if hasattr(self, "core"):
                self.finish()
        finally:
            self._folder.cleanup()

    def finish(self) -> None:
        self.replies += self.bench.finish_chores()
        assert len(self.replies) == self.num_moves
        assert {path.name for path in self.folder.iterdir()} <= set(NAMES)
        for key in "xyz":
            self.bench.control("unpin", key=key)
        super().teardown()
        assert self.core.cache.pool.num_kept == 0


def test_saves_and_restores_change_no_answer() -> None:
    assert kv_store.PIECE_BYTES % SLOT.size == 0
    run_state_machine_as_test(
        KVMachine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_saves_and_restores_change_no_answer_for_long() -> None:
    run_state_machine_as_test(
        KVMachine,
        settings=settings(
            max_examples=500,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
