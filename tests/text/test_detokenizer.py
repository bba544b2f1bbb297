from __future__ import annotations

from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmserve.text.detokenizer import Detokenizer
from lmserve.text.tokenizer import Tokenizer

# a function-scoped fixture is fine here: the tokenizers are cached and never change
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(
    st.sampled_from(
        ["hello", " world", "é", "你好", "😀", "👨‍👩‍👧", "<s>", "</s>", "<a tool>", " ", "\n", "x"]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
).map("".join)
cuts = st.lists(st.integers(0, 200))


def cut(ids: list[int], at: list[int]) -> list[list[int]]:
    """The ids in pieces, empty ones too."""
    edges = [0, *sorted(min(edge, len(ids)) for edge in at), len(ids)]
    return [ids[start:end] for start, end in pairwise(edges)]


def stream(detokenizer: Detokenizer, pieces: list[list[int]]) -> list[str]:
    return [*(detokenizer.push(piece) for piece in pieces), detokenizer.flush()]


@shared
@given(text=texts, at=cuts, skip=st.booleans())
def test_deltas_join_to_the_decoded_text(
    family: Tokenizer, text: str, at: list[int], skip: bool
) -> None:
    ids = family.encode(text, add_special=True)
    deltas = stream(family.detokenizer(skip_special=skip), cut(ids, at))
    assert "".join(deltas) == family.decode(ids, skip_special=skip)


def test_long_runs_of_byte_tokens(family: Tokenizer) -> None:
    for text in ("👨‍👩‍👧" * 30, "é" * 200, "a你" * 100, "x你😀é" * 50):
        ids = family.encode(text, add_special=False)
        deltas = stream(family.detokenizer(skip_special=True), [[id] for id in ids])
        assert "".join(deltas) == family.decode(ids, skip_special=True)


@shared
@given(data=st.data(), at=cuts, skip=st.booleans())
def test_any_ids_of_a_byte_level_vocabulary(
    byte_level_tokenizer: Tokenizer, data: st.DataObject, at: list[int], skip: bool
) -> None:
    tokenizer = byte_level_tokenizer
    # two ids past the end: models pad their vocabularies
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1)))
    deltas = stream(tokenizer.detokenizer(skip_special=skip), cut(ids, at))
    assert "".join(deltas) == tokenizer.decode(ids, skip_special=skip)


@shared
@given(data=st.data(), at=cuts)
def test_the_cut_never_matters(family: Tokenizer, data: st.DataObject, at: list[int]) -> None:
    ids = data.draw(st.lists(st.integers(0, family.vocab_size - 1), max_size=100))
    whole = stream(family.detokenizer(skip_special=True), [ids])
    assert "".join(stream(family.detokenizer(skip_special=True), cut(ids, at))) == "".join(whole)


@shared
@given(text=texts)
def test_no_delta_splits_a_code_point(family: Tokenizer, text: str) -> None:
    ids = family.encode(text, add_special=False)
    decoded = family.decode(ids, skip_special=True)
    for delta in stream(family.detokenizer(skip_special=True), [[id] for id in ids]):
        assert "\ufffd" not in delta or "\ufffd" in decoded


def test_a_code_point_is_held_until_whole(byte_fallback_tokenizer: Tokenizer) -> None:
    ids = byte_fallback_tokenizer.encode("你", add_special=False)[1:]  # without the space
    assert len(ids) == 3
    detokenizer = byte_fallback_tokenizer.detokenizer(skip_special=True)
    assert [detokenizer.push([id]) for id in ids] == ["", "", "你"]


def test_an_unfinished_code_point_is_flushed_as_replacement(family: Tokenizer) -> None:
    ids = family.encode("😀", add_special=False)[:-1]
    detokenizer = family.detokenizer(skip_special=True)
    text = detokenizer.push(ids) + detokenizer.flush()
    assert text == family.decode(ids, skip_special=True)


def test_broken_bytes_are_not_held_for_ever(byte_fallback_tokenizer: Tokenizer) -> None:
    detokenizer = byte_fallback_tokenizer.detokenizer(skip_special=True)
    broken = 3 + 0xFF
    shown = "".join(detokenizer.push([broken]) for _ in range(200))
    assert set(shown) == {"\ufffd"}
    assert len(shown) >= 190


def test_a_long_stream_decodes_short_windows(byte_fallback_tokenizer: Tokenizer) -> None:
    tokenizer = byte_fallback_tokenizer
    ids = tokenizer.encode("hello world " * 200, add_special=False)
    detokenizer = tokenizer.detokenizer(skip_special=True)
    windows: list[int] = []
    inner = detokenizer._decode

    def decode(window: list[int]) -> str:
        windows.append(len(window))
        return inner(window)

    detokenizer._decode = decode
    assert "".join(stream(detokenizer, [ids])) == tokenizer.decode(ids, skip_special=True)
    assert max(windows) <= 20


def test_a_completion_keeps_the_space_before_its_first_word(
    byte_fallback_tokenizer: Tokenizer,
) -> None:
    tokenizer = byte_fallback_tokenizer
    prompt = tokenizer.encode("hello", add_special=True)
    answer = [tokenizer._inner.token_to_id("▁world")]
    assert tokenizer.detokenizer(skip_special=True, context=prompt).push(answer) == " world"
    assert tokenizer.detokenizer(skip_special=True).push(answer) == "world"
