"""The load client, against a server that behaves and one that does not."""

from __future__ import annotations

import pytest

from lmserve.bench.client import Answer, Client, Manner, Prompt
from lmserve.bench.load import Limits, Run, http, prepare, run
from lmserve.bench.summary import Figures, slo_from, summary
from lmserve.bench.workload import NAMED, Workload
from lmserve.errors import SetupError
from tests.bench.servers import ADDED_TOKENS, FakeServer, faking

LIMITS = Limits(warmup=2, timeout_s=30)
IMPATIENT = Limits(warmup=2, timeout_s=1)
SMALL = Workload("small", users=3, num_requests=7, prompt_tokens=50, max_tokens=4)


async def load(
    fake: FakeServer,
    work: Workload,
    limits: Limits = LIMITS,
    slo: dict[str, float] | None = None,
) -> Figures:
    async with http(limits) as session:
        client = Client(session, fake.url, Manner(model="fake"))
        asked = await prepare(client, work, limits, "1")
        return summary(await run(client, work, asked, limits, "1"), slo or {})


def num_tokens(body: dict) -> int:
    words = " ".join(message["content"] for message in body["messages"]).split()
    return ADDED_TOKENS + 2 * len(words)


async def test_users_ask_one_after_another_with_prompts_of_the_size_asked_for():
    async with faking() as fake:
        figures = await load(fake, SMALL)
        asked = fake.bodies[4:]  # two that measure the words, two that warm up
        assert len(asked) == 7
        assert {num_tokens(body) for body in asked} == {50}
        assert len({body["messages"][0]["content"] for body in asked}) == 7
        assert all(body["ignore_eos"] and body["max_tokens"] == 4 for body in asked)
        assert fake.most_at_once == 3
    assert (figures.ok, figures.errors, figures.counted_by) == (7, 0, "usage")
    assert (figures.prompt_tokens_mean, figures.cached_tokens_mean) == (50, 3)
    assert figures.output_tok_s == pytest.approx(28 / figures.wall_s)
    assert 0 < figures.ttft_ms["p50"] <= figures.e2e_ms["p50"] <= figures.e2e_ms["p99"]


async def test_a_shared_prefix_is_the_same_system_message_beside_the_prompt():
    work = Workload("e", num_requests=4, prompt_tokens=32, shared_prefix_tokens=100, max_tokens=1)
    async with faking() as fake:
        await load(fake, work)
        asked = [body["messages"] for body in fake.bodies[6:]]
    assert len({messages[0]["content"] for messages in asked}) == 1
    assert len({messages[1]["content"] for messages in asked}) == 4
    assert {num_tokens({"messages": messages}) for messages in asked} == {132}


async def test_requests_arrive_at_a_rate_whether_or_not_others_ended():
    work = Workload("open", num_requests=5, rate=1000.0, max_tokens=1)
    async with faking(good=4, misdeeds=["silence"] * 5) as fake:
        figures = await load(fake, work, IMPATIENT)
        assert fake.most_at_once == 5
    assert (figures.ok, figures.error_kinds) == (0, {"timeout": 5})


@pytest.mark.parametrize(
    ("misdeed", "error"),
    [
        ("500", "HTTP 500: out of memory"),
        ("silence", "timeout"),
        ("drop", "ClientPayloadError: "),
        ("break off", "the stream broke off"),
        ("nonsense", "JSONDecodeError: "),
        ("error", "error in the stream: "),
    ],
)
async def test_what_a_server_does_wrong_is_counted_and_told(misdeed: str, error: str):
    limits = IMPATIENT if misdeed == "silence" else LIMITS
    async with faking(good=5, misdeeds=[misdeed, "", misdeed]) as fake:
        figures = await load(fake, SMALL, limits, {"e2e": 60_000})
    [(told, number)] = figures.error_kinds.items()
    assert told.startswith(error) and number == 2
    assert (figures.ok, figures.errors) == (5, 2)
    assert figures.output_tok_s == pytest.approx(20 / figures.wall_s)  # of whole answers alone
    assert figures.slo_met == pytest.approx(5 / 7)


async def test_a_server_that_counts_no_tokens_cannot_be_asked_for_sizes():
    async with faking(usage=False) as fake:
        with pytest.raises(SetupError, match="counts no tokens"):
            await load(fake, SMALL)
        async with http(LIMITS) as session:
            answer = await Client(session, fake.url, Manner()).ask(Prompt("", "Hi"), 3)
    assert (answer.output_tokens, answer.counted, answer.error) == (3, False, "")


def test_goodput_counts_requests_that_meet_every_limit():
    quick = Answer(began=0, first=0.1, last=0.5, ended=0.5, gaps=[0.2, 0.2], num_pieces=3)
    halting = Answer(began=0, first=0.1, last=0.5, ended=0.5, gaps=[0.01, 0.39], num_pieces=3)
    late = Answer(began=0, first=3.0, last=3.2, ended=3.2, gaps=[0.1, 0.1], num_pieces=3)
    lost = Answer(began=0, ended=0.1, error="timeout")
    made = Run([quick, halting, late, lost], wall_s=4.0)
    figures = summary(made, slo_from(["ttft=2000", "itl=200"]))
    assert (figures.slo_met, figures.goodput_req_s) == (0.25, 0.25)
    assert summary(made, {}).goodput_req_s is None


@pytest.mark.parametrize("text", ["ttft", "ttft=soon", "speed=3"])
def test_an_objective_that_is_none_is_refused(text: str):
    with pytest.raises(SetupError, match="NAME=MILLISECONDS"):
        slo_from([text])


def test_the_named_workloads_say_what_they_are():
    assert [work.title for work in NAMED.values()] == [
        "1 user, 128/128",
        "8 users, 128/128",
        "32 users, 128/128",
        "8 users, 1,024/64",
        "8 users, shared 1,000 + 32/64",
    ]
    assert Workload("own", rate=2.5).title == "2.5 requests/s, 128/128"
