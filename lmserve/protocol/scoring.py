"""`/v1/score` and `/v1/rerank`: how well documents answer queries, by the likelihood that the model
says so; `/get_ppl`: how likely it finds a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from lmserve.errors import InvalidField
from lmserve.protocol.common import Deadline, Priority
from lmserve.protocol.inputs import check_num, requests_of
from lmserve.types import GenerateRequest

LABELS = ("yes", "no")
TASK = "Does the document answer the query? Say {labels}.\n\nQuery: {query}\n\nDocument: {document}"
MAX_LABELS = 16
MAX_CHARS = 32 * 2**20  # of all prompts of a call: each repeats the query


class JudgingFields(Struct, kw_only=True):
    """What pairs of a query and a document are judged with."""

    labels: Annotated[
        list[str] | None,
        Meta(
            description="What the model may say, the word for a good document first: a score is "
            'its share among them. Default: `["yes", "no"]`.'
        ),
    ] = None
    model: Annotated[
        str | None,
        Meta(description="An `id` of `GET /v1/models`. Default: the model that is served."),
    ] = None
    user: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    priority: Priority = None
    deadline_s: Deadline = None

    def given_labels(self) -> Sequence[str]:
        labels = LABELS if self.labels is None else self.labels
        if not 2 <= len(labels) <= MAX_LABELS or not all(label.strip() for label in labels):
            raise InvalidField(
                f"labels has {len(labels)} words: give 2 to {MAX_LABELS}, none empty",
                param="labels",
            )
        return labels

    def judging(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        param: str,
        owner: str,
        *,
        chats: bool,
    ) -> list[GenerateRequest]:
        """Asks the model of each document, with its query: one for all, or one for each."""
        if not documents:
            raise InvalidField(f"{param} is empty: give at least one text", param=param)
        check_num(documents, param)
        if len(queries) == 1:
            queries = [*queries] * len(documents)
        labels = " or ".join(self.given_labels())
        num_chars = sum(map(len, queries)) + sum(map(len, documents))
        num_chars += len(labels) * len(documents)
        if num_chars > MAX_CHARS:
            raise InvalidField(
                f"{param} makes prompts of {num_chars} characters together, more than {MAX_CHARS}: "
                "send several calls",
                param=param,
            )
        return [
            self._judging(labels, query, document, f"{param}[{index}]", owner, chats=chats)
            for index, (query, document) in enumerate(zip(queries, documents, strict=True))
        ]

    def _judging(
        self, labels: str, query: str, document: str, param: str, owner: str, *, chats: bool
    ) -> GenerateRequest:
        """Prompts with the same query begin alike."""
        content = TASK.format(labels=labels, query=query, document=document)
        return GenerateRequest(
            messages=[{"role": "user", "content": content}] if chats else None,
            text=None if chats else f"{content}\n\nAnswer: ",
            params={"messages": param, "prompt": param},
            model=self.model,
            priority=self.priority or 0,
            deadline_s=self.deadline_s,
            owner=owner,
        )


def share(logprobs: Sequence[float]) -> float:
    """That of the first label among all."""
    most = max(logprobs)
    weights = [math.exp(logprob - most) for logprob in logprobs]
    return weights[0] / sum(weights)


class ScoreRequest(JudgingFields, kw_only=True):
    """Pairs of a query and a document to judge."""

    text_1: Annotated[
        str | list[str], Meta(description="A query: one for all documents, or one for each.")
    ]
    text_2: Annotated[str | list[str], Meta(description="A document, or several.")]

    def to_generate(self, owner: str, *, chats: bool) -> list[GenerateRequest]:
        """One request a pair. `chats`: the model has a chat template."""
        queries = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        documents = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if documents and len(queries) not in (1, len(documents)):
            raise InvalidField(
                f"text_1 has {len(queries)} texts and text_2 {len(documents)}: give one text_1, or "
                "one for each text_2",
                param="text_1",
            )
        return self.judging(queries, documents, "text_2", owner, chats=chats)


class Score(Struct, kw_only=True):
    """Of one pair."""

    object: Literal["score"] = "score"
    index: int
    score: Annotated[float, Meta(description="0 to 1: the share of the first label.")]
    log_likelihoods: Annotated[list[float], Meta(description="Of each label, as an answer.")]


class ScoreUsage(Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class ScoreResponse(Struct, kw_only=True):
    """In the order of the pairs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: ScoreUsage


class RerankText(Struct, kw_only=True):
    """A document."""

    text: str


class RerankRequest(JudgingFields, kw_only=True):
    """Documents to put in order, those that answer the query best first."""

    query: str
    documents: list[str | RerankText]
    top_n: Annotated[int | None, Meta(description="Give the best so many. Default: all.")] = None
    return_documents: Annotated[
        bool | None, Meta(description="Give the documents back, too. Default: true.")
    ] = None

    @property
    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]

    def to_generate(self, owner: str, *, chats: bool) -> list[GenerateRequest]:
        """One request a document. `chats`: the model has a chat template."""
        if self.top_n is not None and self.top_n < 1:
            raise InvalidField(f"top_n is {self.top_n}: it must be at least 1", param="top_n")
        return self.judging([self.query], self.texts, "documents", owner, chats=chats)

    def results(self, scores: Sequence[float]) -> list[RerankResult]:
        texts = self.texts
        order = sorted(range(len(texts)), key=lambda index: -scores[index])
        shown = self.return_documents is not False
        return [
            RerankResult(
                index=index,
                relevance_score=scores[index],
                document=RerankText(text=texts[index]) if shown else msgspec.UNSET,
            )
            for index in order[: self.top_n]
        ]


class RerankResult(Struct, kw_only=True):
    """A document's place."""

    index: Annotated[int, Meta(description="In the documents that were given.")]
    relevance_score: Annotated[float, Meta(description="0 to 1.")]
    document: RerankText | msgspec.UnsetType = msgspec.UNSET


class RerankResponse(Struct, kw_only=True):
    """Best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: ScoreUsage


class PerplexityRequest(Struct, kw_only=True):
    """A text to rate."""

    input: Annotated[str | list[int], Meta(description="A text, or token ids: at least two.")]
    model: Annotated[
        str | None,
        Meta(description="An `id` of `GET /v1/models`. Default: the model that is served."),
    ] = None

    def to_generate(self, owner: str) -> list[GenerateRequest]:
        inputs: Any = self.input
        return requests_of(inputs, "input", model=self.model, owner=owner)


class PerplexityResponse(Struct, kw_only=True):
    """How surprised the model is."""

    ppl: Annotated[
        float,
        Meta(
            description="The mean loss of its tokens after the first; the logarithm of what is "
            "called perplexity. LMDeploy's clients expect it so."
        ),
    ]
    num_tokens: Annotated[int, Meta(description="That it is the mean over.")] = field(default=0)
