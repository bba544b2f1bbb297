"""The spans of an answer, made at its end from the times that were taken anyway.

    chat MODEL
    ├── render    chat template and tokens
    ├── prepare   its grammar and what else a request needs
    ├── queue     in the engine, before its first step
    ├── prefill   to the first token
    └── decode    to the last

Attributes follow OpenTelemetry's conventions for generative AI, and vLLM's where those have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from lmserve import logs
from lmserve.service.generation import Generation
from lmserve.service.timing import Moments
from lmserve.service.work import Outcome
from lmserve.tracing.http import PARENT
from lmserve.tracing.tracing import Tracing, WallClock
from lmserve.types import Done

if TYPE_CHECKING:
    from opentelemetry.context import Context

Attribute = str | int | float | list[str]


class AnswerSpans:
    def __init__(self, tracing: Tracing):
        self._tracing = tracing

    def follow(self, generation: Generation) -> None:
        """To its end; called where it begins, for the request that is being handled there."""
        request_id = logs.REQUEST_ID.get()
        generation.on_ended(partial(self._ended, generation, PARENT.get(), request_id))

    def _ended(
        self, generation: Generation, parent: Context | None, request_id: str, outcome: Outcome
    ) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        moments = generation.moments
        wall = WallClock(moments.now_s)
        span = self._tracing.tracer.start_span(
            f"{generation.operation} {generation.model}",
            Context() if parent is None else parent,
            attributes=_attributes(generation, moments, request_id),
            start_time=wall(moments.arrived_s),
        )
        if isinstance(outcome, Done):
            span.set_attribute("gen_ai.response.finish_reasons", [outcome.finish_reason])
        else:
            span.set_attribute("error.type", type(outcome).__name__)
            span.set_status(Status(StatusCode.ERROR, outcome.message))
        inside = set_span_in_context(span)
        for name, begin_s, end_s in _parts(moments):
            part = self._tracing.tracer.start_span(name, inside, start_time=wall(begin_s))
            part.end(wall(end_s))
        span.end(wall(moments.now_s))


def _parts(moments: Moments) -> Iterator[tuple[str, float, float]]:
    """As far as it came."""
    if moments.encoded_s is not None:
        yield "render", moments.arrived_s, moments.encoded_s
        yield "prepare", moments.encoded_s, moments.submitted_s
    if moments.first_s is None:
        yield "queue", moments.submitted_s, moments.now_s
        return
    begun_s = moments.submitted_s + (moments.queue_s or 0.0)
    yield "queue", moments.submitted_s, begun_s
    yield "prefill", begun_s, moments.first_s
    yield "decode", moments.first_s, moments.last_s


def _attributes(generation: Generation, moments: Moments, request_id: str) -> dict[str, Attribute]:
    usage, sampling = generation.usage, generation.sampling
    attributes: dict[str, Attribute] = {
        "gen_ai.operation.name": generation.operation,
        "gen_ai.provider.name": "lmserve",
        "gen_ai.request.model": generation.model,
        "gen_ai.response.model": generation.model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        # vLLM's
        "gen_ai.request.id": request_id,
        "gen_ai.usage.prompt_tokens": usage.prompt_tokens,
        "gen_ai.usage.completion_tokens": usage.completion_tokens,
        "gen_ai.latency.e2e": moments.now_s - moments.arrived_s,
        "lmserve.engine.rid": generation.rid,
    }
    if generation.session_id is not None:
        attributes["gen_ai.conversation.id"] = str(generation.session_id)
    if moments.first_s is not None:
        ttft_s = moments.first_s - moments.arrived_s
        begun_s = moments.submitted_s + (moments.queue_s or 0.0)
        attributes |= {
            "gen_ai.response.time_to_first_chunk": ttft_s,
            "gen_ai.latency.time_to_first_token": ttft_s,
            "gen_ai.latency.time_in_queue": moments.queue_s or 0.0,
            "gen_ai.latency.time_in_model_prefill": moments.first_s - begun_s,
            "gen_ai.latency.time_in_model_decode": moments.last_s - moments.first_s,
            "gen_ai.latency.time_in_model_inference": moments.last_s - begun_s,
        }
    return attributes
