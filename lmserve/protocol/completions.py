"""`POST /v1/completions`: plain text or token ids continued, no chat template."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.common import UNSERVED, SamplingFields, UsageInfo
from lmserve.types import FinishReason, GenerateRequest

DEFAULT_MAX_TOKENS = 16  # as OpenAI, vLLM and LMDeploy's page-era server
MAX_PROMPTS = 64  # prompts of one call; each is a request of its own to the engine


class CompletionRequest(SamplingFields, kw_only=True):
    """One or several prompts to continue."""

    prompt: Annotated[
        str | list[str | int | list[int]],
        Meta(
            description="A text, a list of texts, a list of token ids, or a list of those. "
            f"Each prompt gets one choice; up to {MAX_PROMPTS} in a call."
        ),
    ]
    max_tokens: Annotated[
        int | None,
        Meta(description=f"Longest answer in tokens. Default: {DEFAULT_MAX_TOKENS}."),
    ] = None

    best_of: Annotated[int | None, Meta(description="Not served yet.", extra={UNSERVED: (1,)})] = (
        None
    )
    echo: Annotated[
        bool | None, Meta(description="Not served yet.", extra={UNSERVED: (False,)})
    ] = None
    suffix: Annotated[str | None, Meta(description="Not served yet.", extra={UNSERVED: ("",)})] = (
        None
    )
    logprobs: Annotated[
        int | bool | None, Meta(description="Not served yet.", extra={UNSERVED: (False,)})
    ] = None

    def to_generate(self, owner: str = "") -> list[GenerateRequest]:
        """One request a prompt, in order."""
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        common = self.sampling(owner) | {"max_tokens": limit}
        texts, prompts_ids = self._prompts()
        num_prompts = len(texts) + len(prompts_ids)
        if num_prompts > MAX_PROMPTS:
            raise InvalidField(
                f"prompt holds {num_prompts} prompts, more than {MAX_PROMPTS}: send several calls",
                param="prompt",
            )
        requests = [GenerateRequest(text=text, **common) for text in texts] + [
            GenerateRequest(token_ids=ids, **common) for ids in prompts_ids
        ]
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return requests
        return [
            replace(request, params=request.params | {"prompt": f"prompt[{index}]"})
            for index, request in enumerate(requests)
        ]

    def _prompts(self) -> tuple[list[str], list[list[int]]]:
        """Texts, or prompts of token ids: one of the two is empty."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt], []
        if not prompt:
            raise InvalidField("prompt is empty", param="prompt")
        ids = [item for item in prompt if isinstance(item, int)]
        texts = [item for item in prompt if isinstance(item, str)]
        lists = [item for item in prompt if isinstance(item, list)]
        if len(prompt) not in (len(ids), len(texts), len(lists)):
            raise InvalidField(
                "prompt mixes texts and token ids: send texts, or token ids, or lists of those",
                param="prompt",
            )
        return texts, [ids] if ids else lists


class CompletionResponseChoice(Struct, kw_only=True):
    index: Annotated[int, Meta(description="Which prompt of the call this continues.")]
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: FinishReason


class CompletionResponse(Struct, kw_only=True):
    """All continuations, without `stream`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    model: str
    choices: list[CompletionResponseChoice]
    usage: UsageInfo


class CompletionResponseStreamChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: FinishReason | None = None


class CompletionStreamResponse(Struct, kw_only=True):
    """One chunk of a streamed continuation."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: Annotated[
        list[CompletionResponseStreamChoice],
        Meta(description="Empty in the chunk that holds the usage."),
    ]
    usage: Annotated[
        UsageInfo | None, Meta(description="Only with `stream_options.include_usage`.")
    ] = None
