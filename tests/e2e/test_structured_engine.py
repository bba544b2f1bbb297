from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from lmserve.bridge.assets import EOS_ID, FIRST_WORD_ID
from lmserve.engine.grammars import NO_THREAD
from lmserve.sampling import Grammar, Thinking
from tests.e2e.conftest import TinyModel
from tests.e2e.structures import Structured
from tests.no_threads import needs_linux, no_threads

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 3]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


OVERLAPPING = {"kernels": "twins", "overlap": "on", "graphs": False}


@pytest.fixture(scope="module", params=[{}, OVERLAPPING], ids=["in turn", "overlapping"])
def engine(tiny_llama: TinyModel, request: pytest.FixtureRequest) -> Iterator[Structured]:
    engine = Structured(tiny_llama.path, **request.param)
    yield engine
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_kind_in_one_batch_with_answers_that_are_free(
    engine: Structured, temperature: float
) -> None:
    schema = engine.grammar("json_schema", PERSON)
    sampling = {"temperature": temperature, "max_tokens": 200}
    unbound = {"temperature": temperature, "max_tokens": 24, "ignore_eos": True}
    free = [engine.ask(f"free {at}", **unbound) for at in range(2)]
    documents = [engine.ask(f"document {at}", schema, **sampling) for at in range(3)]
    matching = engine.ask("pattern", engine.grammar("regex", r"[a-f]{3}-\d{2,4}"), **sampling)
    chosen = engine.ask("choice", engine.grammar("choice", ["yes", "no", "né\n"]), **sampling)
    lark = 'start: "<" word ("," word){2} ">"\nword: /[x-z]{1,3}/'
    spoken = engine.ask("grammar", engine.grammar("grammar", lark), **sampling)
    engine.run()
    for answer in documents:
        assert answer.finish == "stop"
        person = json.loads(engine.text(answer))
        assert list(person) == ["name", "age", "tags"]
        assert 0 <= person["age"] <= 150
        assert set(person["tags"]) <= {"a", "b", 3}
    assert re.fullmatch(r"[a-f]{3}-\d{2,4}", engine.text(matching))
    assert engine.text(chosen) in ("yes", "no", "né\n")
    assert re.fullmatch(r"<[x-z]{1,3}(,[x-z]{1,3}){2}>", engine.text(spoken))
    assert {matching.finish, chosen.finish, spoken.finish} == {"stop"}
    assert [len(answer.ids) for answer in free] == [24, 24]
    if temperature == 0.0:
        alone = engine.ask("free 0", **unbound)
        engine.run()
        assert alone.ids == free[0].ids


@needs_linux
def test_without_a_thread_for_its_grammar_it_is_told_and_nothing_is_held(
    tiny_llama: TinyModel,
) -> None:
    engine = Structured(tiny_llama.path)
    grammar = engine.grammar("choice", ["yes"])
    with no_threads():
        told = engine.ask("x", grammar, max_tokens=5)
    later = engine.ask("y", grammar, max_tokens=5)
    engine.run()
    assert (told.finish, told.error) == ("error", NO_THREAD)
    assert (later.finish, engine.text(later)) == ("stop", "yes")
    engine.close()


def test_what_is_cut_by_length_is_the_beginning_of_something_valid(engine: Structured) -> None:
    grammar = engine.grammar("regex", "(ab|cd){40}")
    answer = engine.ask("x", grammar, temperature=1.5, max_tokens=7)
    engine.run()
    assert answer.finish == "length"
    assert re.fullmatch("(ab|cd){3}[ac]", engine.text(answer))


def test_it_ends_when_its_grammar_does_and_not_before(engine: Structured) -> None:
    """Whatever else would end it, or keep it from ending."""
    grammar = engine.grammar("choice", ["abcabc"])
    stopped = engine.ask("x", grammar, max_tokens=50, stop_token_ids=(ord("b"),))
    ignoring = engine.ask("x", grammar, max_tokens=50, ignore_eos=True)
    longer = engine.ask("x", grammar, max_tokens=50, min_tokens=20)
    engine.run()
    for answer in (stopped, ignoring, longer):
        assert (engine.text(answer), answer.finish) == ("abcabc", "stop")
        assert len(answer.ids) == 6  # no token was run to find out that it is over
        assert answer.stop_token_id is None


def test_an_answer_that_may_go_on_ends_with_the_end_token(engine: Structured) -> None:
    grammar = engine.grammar("regex", "a+")
    biased = {"logit_bias": ((EOS_ID, 100.0),), "max_tokens": 50}
    for more in ({}, {"ignore_eos": True}, {"min_tokens": 9}):
        answer = engine.ask("x", grammar, **biased, **more)
        engine.run()
        assert (engine.text(answer), answer.finish, answer.stop_token_id) == ("a", "stop", EOS_ID)


def test_rules_that_leave_no_token_fail_that_answer_alone(engine: Structured) -> None:
    grammar = engine.grammar("choice", ["yes", "no"])
    dead = engine.ask("x", grammar, allowed_token_ids=(ord("a"),), max_tokens=9)
    banned = engine.ask("x", grammar, bad_words=((ord("n"),), (ord("y"),)), max_tokens=9)
    alive = engine.ask("x", grammar, bad_words=((ord("n"),),), max_tokens=9)
    unlikely = engine.ask("x", grammar, logit_bias=((ord("y"), -100.0),), max_tokens=9)
    engine.run()
    assert (dead.finish, banned.finish) == ("error", "error")
    assert dead.error is not None and "token" in dead.error
    assert (engine.text(alive), engine.text(unlikely)) == ("yes", "no")


def test_a_grammar_that_cannot_be_used_fails_that_answer_alone(engine: Structured) -> None:
    bad = engine.ask("x", Grammar("start: ((("), max_tokens=5)
    good = engine.ask("x", engine.grammar("choice", ["ok"]), max_tokens=5)
    engine.run()
    assert bad.finish == "error"
    assert bad.error is not None and bad.error.startswith("the grammar cannot be used: ")
    assert engine.text(good) == "ok"


def test_a_grammar_too_hard_to_go_on_with_fails_that_answer_alone(engine: Structured) -> None:
    source = "start: X\nX: /(.*a.{200}b.*c.{200}){50}/ & ~/.*(x.{30}y.{30}){20}.*/\n"
    hard = engine.ask("x", Grammar(source), temperature=1.5, max_tokens=300)
    free = engine.ask("x", temperature=1.5, max_tokens=60)
    engine.run()
    assert hard.finish in ("error", "length")
    assert free.finish in ("stop", "length")


def test_it_begins_after_the_reasoning(engine: Structured) -> None:
    """And the end token cannot come before it has begun."""
    end = (ord("|"), FIRST_WORD_ID)
    grammar = engine.grammar("choice", ["yes", "no"], after=end)
    thinking = Thinking(max_tokens=8, end_ids=end)
    bias = ((EOS_ID, 50.0),)
    answer = engine.ask("x", grammar, thinking=thinking, logit_bias=bias, max_tokens=60)
    engine.run()
    assert answer.finish == "stop"
    said = engine.text(answer)
    mark = engine.tokenizer.decode(end, skip_special=False)
    assert said.rpartition(mark)[2] in ("yes", "no")


def test_preemption_changes_nothing(tiny_llama: TinyModel) -> None:
    texts = []
    for blocks in (None, 9):
        settings = {"session_len": 128, "dtype": "float32", "block_size": 16}
        engine = Structured(tiny_llama.path, **settings, num_blocks=blocks)
        grammar = engine.grammar("regex", "([A-Z]{3}-){15}")
        answers = [engine.ask(f"{at}", grammar, temperature=1.5, max_tokens=100) for at in range(4)]
        engine.run()
        if blocks:
            assert engine.core.scheduler.num_preemptions > 0
        texts.append([engine.text(answer) for answer in answers])
        engine.close()
    assert texts[0] == texts[1]


def test_aborted_while_its_matcher_is_made(engine: Structured) -> None:
    gone = engine.ask("x", engine.grammar("regex", "[0-9]{7}"), max_tokens=9)
    engine.abort(gone)
    other = engine.ask("x", engine.grammar("regex", "[0-9]{6}"), max_tokens=9)
    engine.run()
    assert re.fullmatch("[0-9]{6}", engine.text(other))
    assert engine.core.scheduler.get(0) is None
