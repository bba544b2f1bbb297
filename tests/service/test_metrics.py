from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import EngineError
from lmserve.messages import EngineStats, SequenceOutput, pack_ids
from lmserve.service.exposition.exposition import Exposition
from lmserve.service.exposition.families import Families
from lmserve.service.generate import Service, collect
from lmserve.service.histogram import Histogram
from lmserve.service.metrics import MAX_UNKNOWN_FIELDS, Metrics
from lmserve.types import GenerateRequest, TextDelta

TEXT = GenerateRequest(text="abc")


def samples(exposition: Exposition) -> dict[str, float]:
    """Each sample under its name, and its labels but the model's."""
    found = {}
    for family in text_string_to_metric_families(exposition.render_counts().decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            found[f"{sample.name}{sorted(labels.values())}"] = sample.value
            assert sample.labels["model_name"] in ("fake", "")
    return found


async def test_the_names_dashboards_rely_on(exposition: Exposition) -> None:
    families = {
        family.name: family.type
        for family in text_string_to_metric_families(exposition.render_counts().decode())
    }
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "num_requests_waiting_by_reason",
        "kv_cache_usage_perc",
    ):
        assert families[f"vllm:{name}"] == "gauge"
    for name in (
        "prompt_tokens prompt_tokens_cached generation_tokens request_success num_preemptions "
        "prefix_cache_queries prefix_cache_hits admission_rejections spec_decode_num_drafts "
        "spec_decode_num_draft_tokens spec_decode_num_accepted_tokens"
    ).split():
        assert families[f"vllm:{name}"] == "counter"
    for name in (
        "time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds "
        "request_time_per_output_token_seconds request_decode_time_seconds request_prompt_tokens "
        "request_generation_tokens request_params_max_tokens request_params_n "
        "iteration_tokens_total request_queue_time_seconds request_prefill_time_seconds "
        "request_inference_time_seconds request_max_num_generation_tokens"
    ).split():
        assert families[f"vllm:{name}"] == "histogram"


async def test_the_engines_statistics_are_read_at_scrape(
    engine: FakeEngine, exposition: Exposition
) -> None:
    engine.stats = EngineStats(
        num_running=3, num_waiting=2, blocks_total=10, blocks_free=4, blocks_cached=1,
        blocks_pinned=2, blocks_held=3, preemptions=7, prefix_queries=100, prefix_hits=40,
        spec_proposals=5, spec_proposed_tokens=30, spec_accepted_tokens=12,
    )  # fmt: skip
    seen = samples(exposition)
    assert seen["vllm:num_requests_running[]"] == 3
    assert seen["vllm:num_requests_waiting[]"] == 2
    assert seen["vllm:num_requests_waiting_by_reason['capacity']"] == 2
    assert seen["vllm:kv_cache_usage_perc[]"] == 0.5
    assert seen["vllm:num_preemptions_total[]"] == 7
    assert seen["vllm:prefix_cache_queries_total[]"] == 100
    assert seen["vllm:prefix_cache_hits_total[]"] == 40
    assert seen["vllm:spec_decode_num_drafts_total[]"] == 5
    assert seen["vllm:spec_decode_num_draft_tokens_total[]"] == 30
    assert seen["vllm:spec_decode_num_accepted_tokens_total[]"] == 12
    assert seen["lmserve:kv_blocks['held']"] == 3


async def test_a_request_is_observed_when_it_ends(
    engine: FakeEngine, service: Service, exposition: Exposition, clock: Any
) -> None:
    engine.will_say("a", "b", finish="length")
    clock.now_s += 7.0  # the server itself takes no time here
    generation = await service.generate(TEXT)
    with generation.lease():
        clock.now_s += 0.3
        assert isinstance(await anext(generation.events()), TextDelta)
        clock.now_s += 0.02
        seen = samples(exposition)
        assert seen["vllm:time_to_first_token_seconds_count[]"] == 0
        assert seen["vllm:prompt_tokens_total[]"] == 3  # counted when they are run
        await collect(generation)
    seen = samples(exposition)
    assert seen["vllm:request_success_total['length']"] == 1
    assert seen["vllm:prompt_tokens_total[]"] == 3
    assert seen["vllm:generation_tokens_total[]"] == 2
    assert seen["vllm:time_to_first_token_seconds_sum[]"] == pytest.approx(0.3)
    assert seen["vllm:inter_token_latency_seconds_sum[]"] == pytest.approx(0.02)
    assert seen["vllm:e2e_request_latency_seconds_sum[]"] == pytest.approx(0.32)
    assert seen["vllm:request_time_per_output_token_seconds_sum[]"] == pytest.approx(0.02)
    assert seen["vllm:request_queue_time_seconds_sum[]"] == 0
    assert seen["vllm:request_prefill_time_seconds_sum[]"] == pytest.approx(0.3)
    assert seen["vllm:request_inference_time_seconds_sum[]"] == pytest.approx(0.32)
    assert seen["vllm:request_max_num_generation_tokens_sum[]"] == 2


async def test_each_step_is_written_some_time_after_it_was_made(
    engine: FakeEngine, service: Service, exposition: Exposition
) -> None:
    engine.will_say("a", "b", "c")
    await collect(await service.generate(TEXT))
    for _ in range(3):  # a step counts two turns after it came
        await asyncio.sleep(0)
    seen = samples(exposition)
    assert seen["lmserve:step_delivery_seconds_count[]"] == engine.stats.steps == 3
    assert 0 < seen["lmserve:step_delivery_seconds_sum[]"] < 60


async def test_the_time_in_the_engines_queue_is_not_prefill(
    engine: FakeEngine, service: Service, exposition: Exposition, clock: Any
) -> None:
    engine.will_hang()
    generation = await service.generate(TEXT)
    clock.now_s += 0.5
    generation._mailbox.put(SequenceOutput(1, pack_ids([97]), finish="length", queue_s=0.2))
    await collect(generation)
    seen = samples(exposition)
    assert seen["vllm:request_queue_time_seconds_sum[]"] == pytest.approx(0.2)
    assert seen["vllm:request_prefill_time_seconds_sum[]"] == pytest.approx(0.3)


async def test_every_step_is_observed_once(
    engine: FakeEngine, service: Service, exposition: Exposition
) -> None:
    for _ in range(3):
        engine.will_say("a", "b")
    answers = [collect(await service.generate(TEXT)) for _ in range(3)]
    await asyncio.gather(*answers)
    seen = samples(exposition)
    assert seen["vllm:iteration_tokens_total_count[]"] == engine.stats.steps == 2
    assert seen["vllm:iteration_tokens_total_sum[]"] == 6


async def test_while_the_engine_is_gone(
    engine: FakeEngine, service: Service, exposition: Exposition
) -> None:
    engine.will_hang("a")
    with (await service.generate(TEXT)).lease():
        exposition.render_counts()
        engine.stats.num_waiting = engine.stats.blocks_held = engine.stats.blocks_total = 5
        engine.stats.preemptions = 7
        engine.die()
        text = exposition.render_counts().decode()
        seen = samples(exposition)
    assert 'model_name="fake"' in text and 'model_name=""' not in text
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert seen[f"vllm:{name}[]"] == 0
    assert seen["lmserve:kv_blocks['held']"] == 0
    assert seen["vllm:num_preemptions_total[]"] == 7


async def test_each_way_to_end_is_counted_once(
    engine: FakeEngine, service: Service, metrics: Metrics
) -> None:
    engine.will_say("a")
    await collect(await service.generate(TEXT))
    engine.will_fail("no")
    with pytest.raises(EngineError):
        await collect(await service.generate(TEXT))
    engine.will_hang()
    with (await service.generate(TEXT)).lease():
        pass
    assert metrics.finished == {"stop": 1, "length": 0, "tool_calls": 0, "abort": 1, "error": 1}


async def test_engine_restarts_are_counted(
    engine: FakeEngine, service: Service, exposition: Exposition
) -> None:
    assert samples(exposition)["lmserve:engine_restarts_total[]"] == 0
    engine.die()
    exposition.render_counts()  # without an engine
    engine.resume()
    await collect(await service.generate(GenerateRequest(text="a", max_tokens=1)))
    assert samples(exposition)["lmserve:engine_restarts_total[]"] == 1


async def test_unknown_fields_are_bounded(metrics: Metrics, exposition: Exposition) -> None:
    assert metrics.unknown_field("store")
    assert not metrics.unknown_field("store")
    for index in range(1000):
        metrics.unknown_field(f"x{index}" * 100)
    assert len(metrics.unknown_fields) == MAX_UNKNOWN_FIELDS + 1
    assert sum(metrics.unknown_fields.values()) == 1002
    assert samples(exposition)["lmserve:unknown_fields_total['store']"] == 2


async def test_hostile_field_names_stay_one_line(metrics: Metrics, exposition: Exposition) -> None:
    name = 'a"}\nvllm:prompt_tokens_total 9\\'
    metrics.unknown_field(name)
    assert samples(exposition)[f"lmserve:unknown_fields_total{[name]}"] == 1


def test_a_histograms_buckets_are_cumulative() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 9):
        histogram.add(value)
    histogram.add(2, times=3)
    family = Families("m").histogram("h", "", histogram)
    values = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    assert values == {"1.0": 2, "2.0": 6, "+Inf": 7, "h_count": 7, "h_sum": 18}
