from __future__ import annotations

import asyncio
import time

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import InvalidField, TextTooSlow
from lmserve.service.generate import Service, collect
from lmserve.service.structures import Kept
from lmserve.text.structures.compiler import Compiler
from lmserve.types import Done, GenerateRequest, Structure

INTEGER = Structure("json_schema", {"type": "integer"}, "rf.schema")


async def test_the_engine_is_told_the_grammar(service: Service, engine: FakeEngine) -> None:
    generation = await service.generate(GenerateRequest(text="x", structure=INTEGER, stop=("a",)))
    grammar = generation.sampling.grammar
    assert grammar is not None
    assert "%json" in grammar.source and grammar.after == ()
    engine.will_say("a b")
    with generation.lease():
        generation.abort()


async def test_stop_strings_do_not_cut_it_short(service: Service, engine: FakeEngine) -> None:
    engine.will_say("ab", "ac")
    structure = Structure("choice", ["abac"])
    text, done = await collect(
        await service.generate(GenerateRequest(text="x", structure=structure, stop=("b",)))
    )
    assert text == "abac"
    assert isinstance(done, Done)


def _nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(depth // 2):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize("value", [{"type": "strng"}, {"not": {}}, _nested(1020)])
async def test_what_is_refused_leaves_nothing_behind(service: Service, value: object) -> None:
    structure = Structure("json_schema", value, "rf.schema")
    for _ in range(2):  # the second time from memory
        with pytest.raises(InvalidField, match=r"rf\.schema") as caught:
            await service.generate(GenerateRequest(text="x", structure=structure))
        assert caught.value.param == "rf.schema"
        assert service.inflight == 0


async def test_an_answer_that_has_begun_cannot_be_structured(service: Service) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "{"}]
    request = GenerateRequest(messages=messages, continues=True, structure=INTEGER)
    with pytest.raises(InvalidField, match="has begun"):
        await service.generate(request)


async def test_each_is_compiled_once(
    service: Service, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Structure] = []
    compile = Compiler.compile

    def watched(self: Compiler, structure: Structure) -> str:
        compiled.append(structure)
        return compile(self, structure)

    monkeypatch.setattr(Compiler, "compile", watched)
    large = Structure("choice", ["x" * 3000, "y" * 3000])
    for structure in (INTEGER, large, INTEGER, large):
        (await service.generate(GenerateRequest(text="x", structure=structure))).abort()
    assert compiled == [INTEGER, large]


async def test_one_that_takes_long_holds_up_nobody(
    service: Service, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And holds its place among the requests until it has ended."""
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(self: Compiler, structure: Structure) -> str:
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)
        return "start: x"

    monkeypatch.setattr(service._preparer.pool, "_timeout_s", 0.05)
    monkeypatch.setattr(Compiler, "compile", slow)
    with pytest.raises(TextTooSlow, match=r"rf\.schema took longer"):
        await service.generate(GenerateRequest(text="x", structure=INTEGER))
    assert service.inflight == 1
    engine.will_say("free")
    assert (await collect(await service.generate(GenerateRequest(text="x"))))[0] == "free"
    go_on.set()
    until = time.monotonic() + 10
    while service.inflight:
        assert time.monotonic() < until
        await asyncio.sleep(0.005)


def test_what_is_kept_is_bounded() -> None:
    kept = Kept(max_kept=100, max_chars=5000)
    for at in range(100_000):
        kept.put(at.to_bytes(8, "little"), "x" * 10)
        assert len(kept) <= 100
    kept.put(b"large", "y" * 4900)
    assert len(kept) == 11
    kept.put(b"larger", "y" * 6000)
    assert len(kept) == 0
    kept.put(b"a", "x")
    kept.put(b"a", InvalidField("no"))
    assert str(kept.get(b"a")) == "no"
