"""The tree of errors: each has its wire form."""

from __future__ import annotations

import pytest

from lmserve import errors
from lmserve.errors import LmserveError
from lmserve.sampling import SamplingParams


def all_errors() -> list[type[LmserveError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, LmserveError)]


def test_the_tree_is_told_at_the_top_of_the_module():
    assert errors.__doc__ is not None
    names = [kind.__name__ for kind in all_errors()]
    assert len(names) > 10
    assert [name for name in names if name not in errors.__doc__.split()] == []


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_each_error_has_status_type_and_message(kind: type[LmserveError]):
    error = kind("what happened")
    assert 400 <= error.status < 600
    assert error.type.endswith("_error")
    assert (error.message, str(error)) == ("what happened", "what happened")


def test_the_callers_mistakes_are_4xx_and_ours_5xx():
    for kind in all_errors():
        if issubclass(kind, errors.Overloaded):  # 429 for what one caller takes, or waits for
            assert kind.status in (429, 503), kind
        else:
            assert (kind.status < 500) == issubclass(kind, errors.RequestError), kind


def test_a_field_is_named():
    assert errors.InvalidField("too large", param="top_p").param == "top_p"


@pytest.mark.parametrize(
    ("changes", "greedy", "penalised"),
    [
        ({}, False, False),
        ({"temperature": 0.0}, True, False),
        ({"repetition_penalty": 1.1}, False, True),
        ({"presence_penalty": -0.5}, False, True),
        ({"frequency_penalty": 0.5}, False, True),
    ],
)
def test_sampling_says_what_it_needs(changes: dict[str, float], greedy: bool, penalised: bool):
    params = SamplingParams(**changes)
    assert (params.greedy, params.penalised) == (greedy, penalised)
