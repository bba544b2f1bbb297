"""Of what a request is told beside its answer, and of how many answers it gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lmserve.errors import InvalidField
from lmserve.sampling import SamplingParams
from lmserve.service.limits.field import check_ids, check_range, name_of, prompt_param
from lmserve.types import GenerateRequest

MAX_LOGPROBS = 20  # alternatives of each token
MAX_N = 128
MAX_BEST_OF = 128
MAX_CHOICES = 256  # of one call, over all its prompts
MAX_TOLD = 3 * 2**20  # log probabilities of a call's prompts, or answers: about 100 bytes each
MAX_INPUTS = 2048  # prompts of one call that are run and not answered


def logprobs_of(request: GenerateRequest) -> tuple[int | None, int | None, int]:
    """`logprobs`, `prompt_logprobs` and where the latter start."""
    for field in ("logprobs", "prompt_logprobs"):
        if (value := getattr(request, field)) is not None:
            remedy = "; leave it out for none"
            check_range(value, 0, MAX_LOGPROBS, name_of(request, field), remedy)
    start = request.prompt_logprobs_start
    if start < 0:
        name = name_of(request, "prompt_logprobs_start")
        raise InvalidField(f"{name} is {start}: it must be at least 0", param=name)
    return request.logprobs, request.prompt_logprobs, start


def num_made(request: GenerateRequest) -> int:
    """Answers that are made to it."""
    return request.n if request.best_of is None else request.best_of


def check_one(request: GenerateRequest) -> None:
    """Where there is room for one answer only."""
    for field in ("n", "best_of"):
        if getattr(request, field) not in (None, 1):
            name = name_of(request, field)
            raise InvalidField(
                f"{name} is {getattr(request, field)}: one answer is made here, leave it out",
                param=name,
            )


def check_choices(requests: Sequence[GenerateRequest], max_queued: int) -> None:
    """Of one call: answers to each prompt, and to all."""
    for request in requests:
        n, best_of = name_of(request, "n"), name_of(request, "best_of")
        check_range(request.n, 1, MAX_N, n)
        if request.best_of is not None:
            remedy = f", and at least {n} ({request.n})"
            check_range(request.best_of, request.n, MAX_BEST_OF, best_of, remedy)
    num_choices = sum(map(num_made, requests))
    most = min(MAX_CHOICES, max_queued)
    if num_choices > most:
        param = name_of(requests[0], "n" if requests[0].best_of is None else "best_of")
        if num_choices == len(requests):
            param = _prompts_param(requests)
        raise InvalidField(
            f"the call asks for {num_choices} answers to {len(requests)} prompts: ask for at most "
            f"{most} in a call",
            param=param,
        )


def check_told(request: GenerateRequest, prompts: Iterable[tuple[int, SamplingParams]]) -> None:
    """Of one call, log probabilities of its prompts, which are told at once: each prompt by its
    length and what is asked of it."""
    num_told = sum(
        (sampling.prompt_logprobs + 1) * max(0, num_tokens - sampling.prompt_logprobs_start)
        for num_tokens, sampling in prompts
        if sampling.prompt_logprobs is not None
    )
    if num_told > MAX_TOLD:
        param = name_of(request, "prompt_logprobs")
        raise InvalidField(
            f"the call asks for {num_told} log probabilities of its prompts, more than {MAX_TOLD}: "
            f"lower {param}, or send fewer or shorter prompts",
            param=param,
        )


def check_rated(request: GenerateRequest, answers: Iterable[SamplingParams]) -> None:
    """Of one call, log probabilities of its answers, as long as they may become."""
    if request.logprobs is None:
        return
    param, longest = name_of(request, "logprobs"), name_of(request, "max_tokens")
    num_told = sum((request.logprobs + 1) * sampling.max_tokens for sampling in answers)
    _check_rated(num_told, f"{param} or {longest}, or ask for fewer answers", param)


def check_longer(sampling: SamplingParams, max_tokens: int) -> None:
    """The same of a running answer, which is to become so long."""
    if sampling.logprobs is not None:
        _check_rated((sampling.logprobs + 1) * max_tokens, "max_tokens", "max_tokens")


def _check_rated(num_told: int, remedy: str, param: str) -> None:
    if num_told > MAX_TOLD:
        raise InvalidField(
            f"the call asks for up to {num_told} log probabilities of its answers, more than "
            f"{MAX_TOLD}: lower {remedy}",
            param=param,
        )


def check_sum(requests: Sequence[GenerateRequest], num_tokens: int, most: int) -> None:
    """Of one call's prompts, which come in together: what never fits is not for later. One that
    does not by itself runs alone."""
    if len(requests) > 1 and num_tokens > most:
        param = _prompts_param(requests)
        raise InvalidField(
            f"{param} has {len(requests)} prompts of more than {most} tokens together, the most "
            "that the server takes in a call (max_queued_tokens): send several calls",
            param=param,
        )


def check_inputs(requests: Sequence[GenerateRequest], num_runs: int) -> None:
    """Of one call, prompts that are run and not answered; each may be run several times."""
    param = _prompts_param(requests)
    if num_runs < 1:
        raise InvalidField(f"{param} is empty: give at least one", param=param)
    if num_runs > MAX_INPUTS:
        raise InvalidField(
            f"{param} makes {num_runs} prompts to run, more than {MAX_INPUTS}: send several calls",
            param=param,
        )


def _prompts_param(requests: Sequence[GenerateRequest]) -> str:
    """Of the list of them all."""
    return prompt_param(requests[0]).partition("[")[0] if requests else "input"


def check_labels(labels: Sequence[Sequence[int]], vocab_size: int, param: str = "labels") -> None:
    """What is rated after a prompt, in tokens."""
    if not labels:
        raise InvalidField(f"{param} is empty: give at least one", param=param)
    for index, label in enumerate(labels):
        if not label:
            raise InvalidField(
                f"{param}[{index}] has no tokens: give some text", param=f"{param}[{index}]"
            )
        check_ids(label, f"{param}[{index}]", vocab_size)
