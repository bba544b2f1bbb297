from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.text.output import OutputText
from lmserve.text.stops import StopMatcher
from lmserve.text.tokenizer import Tokenizer

alphabet = st.sampled_from("ab\n")
stop_lists = st.lists(st.text(alphabet, min_size=1, max_size=5), min_size=1, max_size=4)
streams = st.text(alphabet, max_size=40)
cuts = st.lists(st.integers(0, 40))


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow and obvious version: the first end wins, then the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(matcher: StopMatcher, pieces: list[str]) -> tuple[str, str | None]:
    shown = ""
    for piece in pieces:
        text, stop = matcher.push(piece)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + matcher.flush(), None


def cut(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted(min(edge, len(text)) for edge in at), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(text=streams, stops=stop_lists, at=cuts)
def test_any_cut_gives_the_obvious_result(text: str, stops: list[str], at: list[int]) -> None:
    assert run(StopMatcher(stops), cut(text, at)) == expected(text, stops)


@given(text=streams, stops=stop_lists)
def test_holds_only_what_may_begin_a_stop(text: str, stops: list[str]) -> None:
    matcher, shown = StopMatcher(stops), ""
    for index, char in enumerate(text, start=1):
        new, stop = matcher.push(char)
        shown += new
        if stop is not None:
            return
        held = text[len(shown) : index]
        assert text[:index] == shown + held
        assert len(held) < max(map(len, stops))
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "text", "result"),
    [
        (["abc", "b"], "xabc", ("xa", "b")),
        (["ab", "b"], "xab", ("x", "ab")),
        (["aab"], "aaab", ("a", "aab")),
        (["\n\n"], "one\ntwo\n\nthree", ("one\ntwo", "\n\n")),
        (["stop"], "sto", ("sto", None)),
        (["😀"], "a😀", ("a", "😀")),
    ],
)
def test_matches(stops: list[str], text: str, result: tuple[str, str | None]) -> None:
    assert run(StopMatcher(stops), list(text)) == result


def output(tokenizer: Tokenizer, *stops: str, min_tokens: int = 0) -> OutputText:
    return OutputText(tokenizer.detokenizer(skip_special=True), stops, min_tokens)


def test_output_counts_tokens_up_to_the_stop(byte_level_tokenizer: Tokenizer) -> None:
    ids = byte_level_tokenizer.encode("one stop two", add_special=False)
    text = output(byte_level_tokenizer, "stop")
    assert text.push(ids) == "one "
    assert text.stop == "stop"
    assert text.num_tokens == len(byte_level_tokenizer.encode("one stop", add_special=False))


def test_output_does_not_look_for_stops_before_min_tokens(byte_level_tokenizer: Tokenizer) -> None:
    ids = list(b"aabaab")
    ids = [id for char in ids for id in byte_level_tokenizer.encode(chr(char), add_special=False)]
    text = output(byte_level_tokenizer, "ab", min_tokens=3)
    assert text.push(ids) == "aaba"
    assert (text.stop, text.num_tokens) == ("ab", 6)
    # a stop string does not begin before either
    text = output(byte_level_tokenizer, "ab", min_tokens=2)
    assert text.push(ids) == "aaba"


def test_output_end_gives_what_was_held(byte_level_tokenizer: Tokenizer) -> None:
    text = output(byte_level_tokenizer, "lo world")
    assert text.push(byte_level_tokenizer.encode("hello", add_special=False)) == "hel"
    assert text.end() == "lo"


def test_output_without_stops_holds_no_text(byte_level_tokenizer: Tokenizer) -> None:
    text = output(byte_level_tokenizer)
    assert text.push(byte_level_tokenizer.encode("hello", add_special=False)) == "hello"
    assert (text.end(num_hidden=1), text.num_tokens) == ("", 6)


@given(text=streams, stops=stop_lists, at=cuts, min_tokens=st.integers(0, 10))
def test_output_does_not_depend_on_the_cut(
    text: str, stops: list[str], at: list[int], min_tokens: int
) -> None:
    from_characters = {"a": 0, "b": 1, "\n": 2}
    ids = [from_characters[char] for char in text]
    edges = [0, *sorted(min(edge, len(ids)) for edge in at), len(ids)]

    def run_output(pieces: list[list[int]]) -> tuple[str, str | None, int]:
        result = OutputText(_Letters(), stops, min_tokens)
        shown = ""
        for piece in pieces:
            shown += result.push(piece)
            if result.stop is not None:
                return shown, result.stop, result.num_tokens
        shown += result.end()
        return shown, result.stop, result.num_tokens

    pieces = [ids[start:end] for start, end in pairwise(edges)]
    shown, stop = expected(text[min_tokens:], stops)
    assert run_output(pieces) == run_output([ids])
    assert run_output(pieces)[:2] == (text[:min_tokens] + shown, stop)


class _Letters:
    """A token a character."""

    def push(self, token_ids: list[int] | tuple[int, ...]) -> str:
        return "".join("ab\n"[id] for id in token_ids)

    def flush(self) -> str:
        return ""


# --- changed in mid-stream ------------------------------------------------------------------


@given(before=streams, after=streams, stops=stop_lists, others=stop_lists, at=cuts)
def test_after_a_change_it_is_as_if_what_was_held_came_anew(
    before: str, after: str, stops: list[str], others: list[str], at: list[int]
) -> None:
    old, shown = StopMatcher(stops), ""
    for piece in cut(before, at):
        text, stop = old.push(piece)
        shown += text
        if stop is not None:
            return
    held = old.flush()
    assert shown + held == before
    assert run(StopMatcher(others, held), cut(after, at)) == expected(held + after, others)


def test_stops_that_are_taken_away_hold_nothing(byte_level_tokenizer: Tokenizer) -> None:
    output = OutputText(byte_level_tokenizer.detokenizer(skip_special=True), ["STOP"])
    assert output.push(byte_level_tokenizer.encode("one ST", add_special=False)) == "one "
    output.change_stops([])
    assert output.push(byte_level_tokenizer.encode("OP", add_special=False)) == "STOP"
    assert (output.end(), output.stop) == ("", None)


def test_stops_that_are_added_find_what_is_not_shown_yet(byte_level_tokenizer: Tokenizer) -> None:
    output = OutputText(
        byte_level_tokenizer.detokenizer(skip_special=True), ["STOP"], always=["<end>"]
    )
    assert output.push(byte_level_tokenizer.encode("one ST", add_special=False)) == "one "
    output.change_stops(["T"])
    assert output.push(byte_level_tokenizer.encode("OP", add_special=False)) == "S"
    assert output.stop == "T"


def test_what_is_held_at_the_end_is_shown_after_a_change(byte_level_tokenizer: Tokenizer) -> None:
    output = OutputText(byte_level_tokenizer.detokenizer(skip_special=True), ["STOP"])
    output.push(byte_level_tokenizer.encode("one ST", add_special=False))
    output.change_stops([])
    assert output.end() == "ST"


def test_the_models_own_stops_stay(byte_level_tokenizer: Tokenizer) -> None:
    output = OutputText(
        byte_level_tokenizer.detokenizer(skip_special=True), ["a"], always=["<end>"]
    )
    output.change_stops([])
    assert output.push(byte_level_tokenizer.encode("ab<end>c", add_special=False)) == "ab"
    assert output.stop == "<end>"


def test_a_stop_of_any_length_costs_what_is_matched_of_it() -> None:
    matcher = StopMatcher(["ab" * 2_000_000, "x"])
    assert matcher.push("abab" * 100) == ("", None)
    assert matcher.push("c ab") == ("abab" * 100 + "c ", None)
    assert matcher.push("x") == ("ab", "x")
    assert max(len(automaton._failure) for automaton in matcher._automata) <= 400


@pytest.mark.parametrize("cut", [["a<end>b STOP c"], list("a<end>b STOP c"), ["a<e", "nd>"]])
@pytest.mark.parametrize(
    ("stops", "shown"), [(["STOP"], "a"), (["<end>"], "a"), (["<e"], "a<e"), (["a<"], "a<")]
)
def test_the_stop_that_is_shown_is_the_clients(
    byte_level_tokenizer: Tokenizer, cut: list[str], stops: list[str], shown: str
) -> None:
    output = OutputText(
        byte_level_tokenizer.detokenizer(skip_special=True),
        stops,
        always=["<end>"],
        include_stop=True,
    )
    told = ""
    for piece in cut:
        told += output.push(byte_level_tokenizer.encode(piece, add_special=False))
    assert told == shown
