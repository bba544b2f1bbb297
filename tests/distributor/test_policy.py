"""Which node: the strategies, and what ties a request to one."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.distributor import policy
from lmserve.distributor.dispatch import Dispatch, Recent
from lmserve.distributor.errors import NodeUnavailable, SessionAway
from lmserve.distributor.nodes import Node, Nodes, node_url
from lmserve.distributor.policy import (
    STRATEGIES,
    min_expected_latency,
    min_observed_latency,
    rendezvous,
    speeds,
    weighted_random,
)
from lmserve.distributor.wish import Wish, session_key
from lmserve.errors import InvalidField, ModelNotFound


def a_node(number: int, **known: Any) -> Node:
    node = Node(f"http://node-{number}:1", configured=True)
    node.models, node.alive = ("m",), True
    node.latency.extend(known.pop("latency", ()))
    for name, value in known.items():
        setattr(node, name, value)
    return node


loads = st.fixed_dictionaries(
    {
        "unfinished": st.integers(0, 50),
        "speed": st.none() | st.floats(0.01, 1e6),
        "latency": st.lists(st.floats(0, 1e4), max_size=20),
    }
)
clusters = st.lists(loads, min_size=1, max_size=6).map(
    lambda each: [a_node(number, **known) for number, known in enumerate(each)]
)


@given(clusters, st.sampled_from(sorted(STRATEGIES)))
def test_a_strategy_picks_one_of_its_nodes(nodes: list[Node], name: str) -> None:
    assert STRATEGIES[name](nodes) in nodes


@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_no_key_is_at_an_end_of_the_scale(byte: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Extreme:
        def __init__(self, data: bytes, digest_size: int):
            self._digest = byte * digest_size

        def digest(self) -> bytes:
            return self._digest

    monkeypatch.setattr(policy, "blake2b", Extreme)
    nodes = [a_node(number) for number in range(2)]
    assert rendezvous("key", nodes) in nodes


def test_a_key_may_be_anything() -> None:
    nodes = [a_node(number) for number in range(2)]
    assert rendezvous("\udcff", nodes) in nodes


@given(clusters)
def test_the_least_work_for_its_speed(nodes: list[Node]) -> None:
    cost = dict(
        zip(
            nodes,
            (n.unfinished / s for n, s in zip(nodes, speeds(nodes), strict=True)),
            strict=True,
        )
    )
    assert cost[min_expected_latency(nodes)] == min(cost.values())


@given(clusters)
def test_a_node_without_history_is_tried_before_the_others(nodes: list[Node]) -> None:
    untried = [node for node in nodes if not node.latency and not node.unfinished]
    picked = min_observed_latency(nodes)
    assert not untried or picked in untried


def test_an_untried_node_gets_one_request_and_not_all() -> None:
    known, new = a_node(1, latency=[1.0]), a_node(2, unfinished=1)
    assert min_observed_latency([known, new]) is known


def test_observed_latency_is_a_mean_and_counts_who_waits() -> None:
    quick, slow = a_node(1, latency=[1.0, 3.0]), a_node(2, latency=[3.0])
    assert min_observed_latency([quick, slow]) is quick
    quick.unfinished = 1  # the next would take twice as long
    assert min_observed_latency([quick, slow]) is slow
    quick.latency.extend([9.0] * 15)  # what it once was is forgotten
    quick.unfinished = 0
    assert min_observed_latency([quick, slow]) is slow


def test_ties_are_shuffled() -> None:
    nodes = [a_node(number) for number in range(3)]
    picked = {min_expected_latency(nodes) for _ in range(200)}
    assert picked == set(nodes)


def test_random_follows_speed_and_a_node_without_one_has_the_mean() -> None:
    nodes = [a_node(1, speed=3.0), a_node(2, speed=1.0), a_node(3)]
    assert speeds(nodes) == [3.0, 1.0, 2.0]
    random.seed(7)
    counts = Counter(weighted_random(nodes) for _ in range(6000))
    assert counts[nodes[0]] / 6000 == pytest.approx(3 / 6, abs=0.05)
    assert counts[nodes[1]] / 6000 == pytest.approx(1 / 6, abs=0.05)


keys = st.text(max_size=20)


@given(clusters, keys)
def test_a_session_is_found_whatever_the_order(nodes: list[Node], key: str) -> None:
    home = rendezvous(key, nodes)
    assert rendezvous(key, random.sample(nodes, len(nodes))) is home
    assert rendezvous(key, [home]) is home


@given(clusters, keys)
def test_a_node_that_goes_moves_its_own_sessions_only(nodes: list[Node], key: str) -> None:
    for node in nodes:  # equal ones: a mean that changes moves keys too
        node.speed = 1.0
    home = rendezvous(key, nodes)
    for gone in nodes:
        if gone is not home:
            assert rendezvous(key, [node for node in nodes if node is not gone]) is home


def test_sessions_are_shared_out_by_speed() -> None:
    nodes = [a_node(1, speed=3.0), a_node(2, speed=1.0)]
    counts = Counter(rendezvous(session_key("", number), nodes) for number in range(4000))
    assert counts[nodes[0]] / 4000 == pytest.approx(0.75, abs=0.05)


def a_dispatch(*nodes: Node) -> Dispatch:
    known = Nodes()
    for node in nodes:
        known.add(node)
    return Dispatch(known, "min_expected_latency")


PREFIXES = (b"long", b"short")


def test_the_same_beginning_goes_where_it_was_seen() -> None:
    nodes = [a_node(number) for number in range(4)]
    dispatch = a_dispatch(*nodes)
    first = dispatch.choose(Wish(prefixes=PREFIXES))
    first.unfinished = 1  # the strategy would go elsewhere
    assert all(dispatch.choose(Wish(prefixes=PREFIXES)) is first for _ in range(50))
    assert dispatch.choose(Wish(prefixes=(b"other", b"short"))) is first
    assert dispatch.choose(Wish(prefixes=(b"new",))) is not first
    assert dispatch.choose(Wish()) is not first


@given(st.integers(0, 40), st.integers(0, 40))
def test_unless_it_has_far_more_to_do_than_another(warm: int, cold: int) -> None:
    first, second = a_node(1), a_node(2)
    second.alive = False
    dispatch = a_dispatch(first, second)
    assert dispatch.choose(Wish(prefixes=PREFIXES)) is first
    second.alive = True
    first.unfinished, second.unfinished = warm, cold
    picked = dispatch.choose(Wish(prefixes=PREFIXES))
    assert (picked is first) == (warm <= 2 * min(warm, cold) + 4)


def test_a_dead_node_is_not_chosen_for_a_beginning() -> None:
    first, second = a_node(1), a_node(2, unfinished=3)
    dispatch = a_dispatch(first, second)
    assert dispatch.choose(Wish(prefixes=PREFIXES)) is first
    first.alive = False
    assert dispatch.choose(Wish(prefixes=PREFIXES)) is second


def test_a_session_stays_and_is_not_begun_anew_elsewhere() -> None:
    nodes = [a_node(number) for number in range(3)]
    dispatch = a_dispatch(*nodes)
    wish = Wish(session=session_key("key", 7), session_id=7)
    home = dispatch.choose(wish)
    dispatch.answered(wish, home, 200)
    home.unfinished = 1000
    assert dispatch.choose(wish) is home
    home.alive = False
    with pytest.raises(SessionAway, match=f"session 7 .*{home.url}.*end the session"):
        dispatch.choose(wish)
    dispatch.forget(wish)
    assert dispatch.choose(wish) is not home


def test_a_new_session_whose_node_fails_may_start_on_another() -> None:
    nodes = [a_node(number) for number in range(3)]
    dispatch = a_dispatch(*nodes)
    wish = Wish(session="s", session_id=7)
    first = dispatch.choose(wish)
    assert dispatch.choose(wish, [first]) is not first
    dispatch.answered(wish, first, 500)  # it has not begun
    assert dispatch.choose(wish, [first]) is not first


def test_a_last_turn_ends_the_tie() -> None:
    nodes = [a_node(number) for number in range(2)]
    dispatch = a_dispatch(*nodes)
    wish, last = Wish(session="s"), Wish(session="s", ends_session=True)
    home = dispatch.choose(wish)
    dispatch.answered(wish, home, 200)
    dispatch.answered(last, dispatch.choose(last), 200)
    home.alive = False
    with pytest.raises(SessionAway):  # it is still being answered: a cancel must go there
        dispatch.choose(wish)
    dispatch.ended(last)
    assert dispatch.choose(wish) is not home


def test_a_session_the_node_named_is_found_there() -> None:
    nodes = [a_node(number) for number in range(8)]
    dispatch = a_dispatch(*nodes)
    for number, node in enumerate(nodes):
        dispatch.answered(Wish(opens_for="key"), node, 200, told_ids=[str(number)])
    for number, node in enumerate(nodes):
        assert dispatch.choose(Wish(session=session_key("key", number))) is node


def test_models() -> None:
    first, second = a_node(1), a_node(2, models=("n",))
    dispatch = a_dispatch(first, second)
    assert dispatch.choose(Wish(model="m")) is first
    assert dispatch.choose(Wish(model="n")) is second
    with pytest.raises(ModelNotFound, match="use one of m, n"):
        dispatch.choose(Wish(model="x"))
    second.alive = False
    with pytest.raises(NodeUnavailable, match="no node with 'n' is alive"):
        dispatch.choose(Wish(model="n"))
    first.alive = False
    with pytest.raises(NodeUnavailable, match="no node is alive"):
        dispatch.choose(Wish())
    with pytest.raises(NodeUnavailable, match="there are no nodes"):
        a_dispatch().choose(Wish(model="m"))


@given(st.lists(st.tuples(st.text(max_size=2), st.sampled_from(["put", "get", "drop"]))))
def test_recent_keeps_the_latest(steps: list[tuple[str, str]]) -> None:
    recent: Recent[str] = Recent(3)
    order: list[str] = []
    for key, step in steps:
        if step == "put":
            recent.put(key, key)
        elif step == "drop":
            recent.drop(key)
        else:
            assert recent.get(key) == (key if key in order else None)
        if step == "put" or key in order:
            order = [each for each in order if each != key]
            order = [*order, key][-3:] if step != "drop" else order
    assert len(recent) == len(order)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://10.0.0.5:23333/", "http://10.0.0.5:23333"),
        (" https://Some.Host ", "https://some.host"),
        ("http://[::1]:80/base/", "http://[::1]/base"),
        ("http://bücher_1.example.:81", "http://xn--bcher_1-n2a.example.:81"),
    ],
)
def test_urls_of_nodes(given: str, shown: str) -> None:
    assert node_url(given) == shown == node_url(shown)


@pytest.mark.parametrize(
    "url",
    ["", "10.0.0.5:23333", "ftp://x", "http://", "http://u:p@x", "http://x?y", "http://x#y",
     "http://0.0.0.0:23333", "http://[::]:1", "http://x:99999", "http://x:0", "http://[1",
     "http://a..b:80", f"http://{'a' * 64}:80", "http://a\0b:80", "http://%31.0.0.1:80",
     "http://[fe80::1%25eth0]:80", f"http://10.0.0.5:80/{'a' * 500}"],
)  # fmt: skip
def test_no_urls_of_nodes(url: str) -> None:
    with pytest.raises(InvalidField) as caught:
        node_url(url)
    assert caught.value.param == "url"
