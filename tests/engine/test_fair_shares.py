"""Tenants share the engine: who comes before whom, how much of a step, and who gives way."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.portions import PORTION
from lmserve.engine.scheduler import Scheduler
from lmserve.engine.sequence import Sequence
from lmserve.engine.shares import BURST_STEPS
from lmserve.messages import Tenant
from lmserve.sampling import SamplingParams

MANY, ONE = Tenant("many"), Tenant("one")


class Fleet:
    """A scheduler whose plans are computed at once, and what each tenant was given."""

    def __init__(
        self,
        num_blocks: int = 1000,
        block_size: int = 4,
        batch: int = 64,
        budget: int = 64,
        *,
        fair: bool = True,
    ):
        self.cache = CacheManager(num_blocks, block_size)
        self.scheduler = Scheduler(
            self.cache, max_batch_size=batch, max_step_tokens=budget, fair=fair
        )
        self.given: dict[str, int] = {}
        self._rids = count()

    def ask(
        self,
        tenant: Tenant,
        num_tokens: int,
        *,
        max_tokens: int = 1000,
        priority: int = 0,
        like: Sequence | None = None,
    ) -> Sequence:
        rid = next(self._rids)
        first = rid if like is None else like.rid
        prompt = [first * 10_000 + i for i in range(num_tokens)]
        sampling = SamplingParams(max_tokens=max_tokens)
        seq = Sequence(rid, prompt, sampling, priority=priority, tenant=tenant)
        self.scheduler.add(seq)
        return seq

    def step(self) -> dict[int, int]:
        """The tokens run of each sequence, by rid."""
        plan = self.scheduler.schedule(0.0)
        self.cache.end_step(plan)
        for row in plan.rows:
            seq = self.scheduler.running[row.rid]
            self.cache.commit(seq, len(row.token_ids))
            cost = len(row.token_ids) + (row.sampling is not None)
            self.given[seq.tenant.name] = self.given.get(seq.tenant.name, 0) + cost
            if row.sampling is not None:
                seq.tokens.append(5_000_000 + seq.rid * 10_000 + len(seq.tokens))
                if seq.is_full:
                    self.scheduler.finish(seq)
        return {row.rid: len(row.token_ids) for row in plan.rows}


def steps_until_first_token(fleet: Fleet, seq: Sequence, most: int = 1000) -> int:
    for number in range(1, most):
        fleet.step()
        if len(seq.tokens) > seq.num_prompt_tokens:
            return number
    raise AssertionError("it never gets a token")


def test_who_comes_passes_those_of_one_who_had_more() -> None:
    fleet = Fleet(batch=2, budget=64)
    for _ in range(20):
        fleet.ask(MANY, 60, max_tokens=2)
    for _ in range(3):
        fleet.step()
    assert steps_until_first_token(fleet, fleet.ask(ONE, 20)) == 1


def test_unfair_is_in_the_order_of_arrival() -> None:
    fleet = Fleet(batch=2, fair=False)
    first, second, third = fleet.ask(MANY, 9), fleet.ask(MANY, 9), fleet.ask(ONE, 9)
    fleet.step()
    assert list(fleet.scheduler.running) == [first.rid, second.rid]
    assert third.rid not in fleet.step()


def test_a_prompt_of_one_who_had_less_gets_most_of_the_step() -> None:
    fleet = Fleet(budget=64)
    others = [fleet.ask(MANY, 4) for _ in range(40)]
    for _ in range(10):
        fleet.step()
    one = fleet.ask(ONE, 100)
    given = fleet.step()
    assert given[one.rid] == 64 - 64 // PORTION
    assert sum(given.get(seq.rid, 0) for seq in others) == 64 // PORTION
    fleet.step()
    assert len(fleet.step()) == 41  # and then all of them again


def test_decodes_put_off_take_turns() -> None:
    fleet = Fleet(budget=64)
    others = [fleet.ask(MANY, 4) for _ in range(60)]
    for _ in range(10):
        fleet.step()
    fleet.ask(ONE, 400)
    served = [set(fleet.step()) for _ in range(PORTION)]
    assert all(sum(seq.rid in rids for rids in served) >= 1 for seq in others)


def test_of_who_is_gone_no_turn_is_remembered() -> None:
    fleet = Fleet(budget=64)
    others = [fleet.ask(MANY, 4) for _ in range(60)]
    for _ in range(10):
        fleet.step()
    fleet.ask(ONE, 1000)
    fleet.step()
    for seq in others[1:]:  # aborted, most of them just left out
        fleet.scheduler.finish(seq)
    fleet.step()
    portions = fleet.scheduler.portions
    assert portions.favoured is not None
    assert set(portions._left_out) <= {others[0].rid}


def test_a_short_prompt_makes_a_short_step() -> None:
    fleet = Fleet(budget=64)
    for _ in range(20):
        fleet.ask(MANY, 100)
    for _ in range(10):
        fleet.step()
    one = fleet.ask(ONE, 5)
    given = fleet.step()
    assert given[one.rid] == 5
    assert sum(given.values()) <= 5 + 64 // PORTION


def test_a_less_urgent_prompt_is_not_favoured_over_more_urgent_ones() -> None:
    fleet = Fleet(budget=64)
    for _ in range(40):
        fleet.ask(MANY, 4)
    for _ in range(10):
        fleet.step()
    fleet.ask(ONE, 100, priority=1)
    assert len(fleet.step()) == 41


def test_where_all_places_are_taken_one_gives_way() -> None:
    fleet = Fleet(batch=4)
    others = [fleet.ask(MANY, 8) for _ in range(6)]
    fleet.step()
    one = fleet.ask(ONE, 8)
    fleet.step()
    assert one.rid in fleet.scheduler.running
    assert fleet.scheduler.num_preemptions == 1
    assert others[3].num_lost == 1  # the last that was let in
    for _ in range(50):
        fleet.step()
    assert fleet.scheduler.num_preemptions == 1, "nobody is put off to and fro"


def test_nobody_gives_way_to_one_that_waits_for_a_prompt_like_its_own() -> None:
    fleet = Fleet(batch=4, budget=64)
    for _ in range(4):
        fleet.ask(MANY, 60)
    for _ in range(8):
        fleet.step()
    first = fleet.ask(ONE, 400)
    fleet.step()
    assert fleet.scheduler.num_preemptions == 1
    alike = fleet.ask(ONE, 400, like=first)
    while first.num_behind > 1:
        assert fleet.scheduler.num_preemptions == 1
        fleet.step()
    fleet.step()
    assert fleet.scheduler.num_preemptions == 2
    assert alike.rid in fleet.scheduler.running
    assert alike.num_cached == 399


def test_where_all_blocks_are_taken_some_give_way() -> None:
    fleet = Fleet(num_blocks=40, block_size=4, budget=64)
    for _ in range(4):
        fleet.ask(MANY, 32, max_tokens=8)
    fleet.step()
    fleet.step()
    one = fleet.ask(ONE, 36, max_tokens=4)
    assert steps_until_first_token(fleet, one) <= 4


def test_a_tenant_of_few_places_is_not_asked_for_one() -> None:
    fleet = Fleet(batch=2)
    fleet.ask(MANY, 8)
    fleet.ask(Tenant("third"), 8)
    fleet.step()
    fleet.ask(ONE, 8)
    for _ in range(20):
        fleet.step()
    assert fleet.scheduler.num_preemptions == 0


def test_being_away_saves_up_a_burst_and_no_more() -> None:
    fleet = Fleet(budget=64)
    shares = fleet.scheduler.shares
    for _ in range(64):
        fleet.ask(MANY, 4)
    for _ in range(100):
        fleet.step()
    one = fleet.ask(ONE, 4)
    assert one.share.served == shares.level - shares.burst


def test_counters_of_tenants_that_are_gone_are_forgotten() -> None:
    fleet = Fleet(budget=64)
    fleet.ask(MANY, 4)
    for number in range(1000):
        seq = fleet.ask(Tenant(f"t{number}"), 2, max_tokens=1)
        while seq.rid in fleet.scheduler.running or fleet.scheduler.waiting.get(seq.rid):
            fleet.step()
    assert len(fleet.scheduler.shares._shares) < 300
    while fleet.scheduler.has_work:
        fleet.step()
    assert not fleet.scheduler.shares._shares
    assert fleet.scheduler.shares.level == 0.0


PROMPTS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90)), min_size=3, max_size=25)


@settings(max_examples=30, deadline=None)
@given(asked=PROMPTS, batch=st.sampled_from([1, 2, 5, 40]), budget=st.sampled_from([1, 8, 40]))
def test_everybody_is_served_in_bounded_time(
    asked: list[tuple[int, int]], batch: int, budget: int
) -> None:
    """As many steps as there are tokens, and as many again as are run twice."""
    fleet = Fleet(num_blocks=40, batch=batch, budget=budget)
    for number, num_tokens in asked:
        fleet.ask(Tenant(f"t{number}", 0.5 + number), num_tokens, max_tokens=4)
    most = sum(num_tokens + 4 for _, num_tokens in asked) * 2
    for _ in range(most):
        if not fleet.scheduler.has_work:
            break
        assert fleet.step(), "nothing runs"
    assert not fleet.scheduler.has_work


@settings(max_examples=8, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=4),
    sizes=st.lists(st.integers(1, 60), min_size=4, max_size=4),
    batch=st.sampled_from([4, 16]),
)
def test_those_that_always_want_more_get_by_weight(
    weights: list[float], sizes: list[int], batch: int
) -> None:
    fleet = Fleet(num_blocks=400, batch=batch, budget=16)
    tenants = [Tenant(f"t{number}", weight) for number, weight in enumerate(weights)]

    def keep_asking(num: int) -> None:
        for tenant, size in zip(tenants, sizes, strict=False):
            waiting = [s for s in fleet.scheduler.waiting._sequences.values() if s.tenant is tenant]
            for _ in range(num - len(waiting)):
                fleet.ask(tenant, size, max_tokens=3)

    for _ in range(150):
        keep_asking(8)
        fleet.step()
    begun = dict(fleet.given)
    for _ in range(150):
        keep_asking(8)
        fleet.step()
    got = [(fleet.given[t.name] - begun.get(t.name, 0)) / t.weight for t in tenants]
    shares = fleet.scheduler.shares
    assert max(got) - min(got) <= 4 * shares.burst, got


def keep_asking(fleet: Fleet, tenants: Iterable[Tenant], num: int = 4) -> None:
    """So many prompts of each are there."""
    scheduler = fleet.scheduler
    for tenant in tenants:
        there = [*scheduler.running.values(), *scheduler.waiting._sequences.values()]
        for _ in range(num - sum(seq.tenant is tenant for seq in there)):
            fleet.ask(tenant, 120, max_tokens=1)


@pytest.mark.parametrize("weights", [(1.0, 0.02), (1000.0, 20.0), (0.05, 0.001)])
def test_weights_count_only_beside_each_other(weights: tuple[float, float]) -> None:
    fleet = Fleet(batch=16, budget=64)
    tenants = [Tenant(f"t{number}", weight) for number, weight in enumerate(weights)]
    for _ in range(600):
        keep_asking(fleet, tenants)
        fleet.step()
    assert 0.01 < fleet.given["t1"] / sum(fleet.given.values()) < 0.04  # 1/51


@pytest.mark.parametrize("weight", [0.001, 1.0, 1000.0])
def test_who_comes_is_ahead_for_a_burst_whatever_its_weight(weight: float) -> None:
    fleet = Fleet(batch=16, budget=64)
    before, one = Tenant("before", weight), Tenant("one", weight)
    for _ in range(50):
        keep_asking(fleet, [before])
        fleet.step()
    fleet.given.clear()
    for _ in range(4 * BURST_STEPS):
        keep_asking(fleet, [before, one])
        fleet.step()
    ahead = fleet.given["one"] - fleet.given["before"]
    assert BURST_STEPS * 64 / 2 < ahead < 2 * BURST_STEPS * 64


@settings(max_examples=30, deadline=None)
@given(asked=PROMPTS, batch=st.sampled_from([2, 5, 40]), budget=st.sampled_from([8, 40]))
def test_one_tenant_is_served_as_if_there_were_no_shares(
    asked: list[tuple[int, int]], batch: int, budget: int
) -> None:
    plans = []
    for fair in (True, False):
        fleet = Fleet(num_blocks=40, batch=batch, budget=budget, fair=fair)
        for priority, num_tokens in asked:
            fleet.ask(ONE, num_tokens, max_tokens=4, priority=priority)
        plans.append([fleet.step() for _ in range(60)])
    assert plans[0] == plans[1]
