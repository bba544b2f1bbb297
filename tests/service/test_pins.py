from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from lmserve.service.warm.pins import to_let_go


@dataclass(frozen=True)
class One:
    owner: str
    num_blocks: int
    used_s: float


ONES = st.lists(
    st.builds(One, st.sampled_from("abc"), st.integers(0, 20), st.floats(0, 9)), max_size=12
)


def test_of_one_owner_that_unused_longest_goes() -> None:
    old, older, new = (One("a", 10, used_s) for used_s in (2.0, 1.0, 3.0))
    assert to_let_go([new, old, older], 11) == [older, old]
    assert to_let_go([new, old, older], 0) == []


def test_who_has_most_makes_room() -> None:
    small = One("b", 10, 0.0)  # though unused longest
    assert small not in to_let_go([small, *(One("a", 10, 1.0 + n) for n in range(9))], 80)


@given(ONES, st.integers(0, 150))
def test_no_owner_gives_more_than_its_surplus_over_an_equal_part(
    ones: list[One], most: int
) -> None:
    total = sum(one.num_blocks for one in ones)
    gone = to_let_go(ones, total - most)
    left = [one for one in ones if not any(one is other for other in gone)]
    assert sum(one.num_blocks for one in left) <= max(0, most)
    owners = {one.owner for one in ones}
    for owner in owners:
        own = sum(one.num_blocks for one in ones if one.owner == owner)
        if own * len(owners) <= most:
            assert not any(one.owner == owner for one in gone)
