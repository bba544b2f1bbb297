"""What chat and completions may be asked with beside the other routes: several answers to one
prompt, and what an answer comes with. Both declare these fields with the types here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from lmserve.errors import InvalidField
from lmserve.protocol.common import StreamOptions

MAX_INTERVAL = 1024

Num = Annotated[int | None, Meta(description="Answers to make of each prompt. Default: 1.")]
PromptLogprobs = Annotated[
    int | None,
    Meta(description="Log probabilities of the prompt's tokens, with so many alternatives each."),
]
IncludeStop = Annotated[
    bool | None, Meta(description="Show the `stop` text that ends the answer. Default: false.")
]
ReturnTokenIds = Annotated[
    bool | None,
    Meta(description="Give `prompt_token_ids`, and the `token_ids` of each choice or chunk."),
]
ReturnProgress = Annotated[
    bool | None,
    Meta(description="With `stream`: chunks with `prompt_progress` while the prompt is run."),
]
ReturnTimings = Annotated[
    bool | None, Meta(description="Give `timings`, in a stream with the last choice's last chunk.")
]
StreamInterval = Annotated[
    int | None,
    Meta(
        description="With `stream`: so many tokens in a chunk, save the first and the last. "
        "Default: 1, or what a step makes."
    ),
]


@dataclass(frozen=True, slots=True)
class Extras:
    """What an answer is told with beside its text."""

    include_usage: bool = False  # in a chunk of its own
    usage_so_far: bool = False  # in every chunk
    logprobs: bool = False
    prompt_logprobs: bool = False
    token_ids: bool = False
    timings: bool = False
    progress: bool = False
    interval: int = 1
    echo: bool = False

    @property
    def any(self) -> bool:
        """Anything that the quick way of telling it does not know."""
        return (
            self.usage_so_far
            or self.logprobs
            or self.prompt_logprobs
            or self.token_ids
            or self.timings
            or self.progress
            or self.interval > 1
            or self.echo
        )


def include_usage(options: StreamOptions | None) -> tuple[bool, bool]:
    """In a chunk of its own; in every chunk."""
    if options is None:
        return False, False
    asked = bool(options.include_usage)
    return asked, asked and bool(options.continuous_usage_stats)


def check_interval(given: int | None) -> None:
    if given is not None and not 1 <= given <= MAX_INTERVAL:
        raise InvalidField(
            f"stream_interval is {given}: it must be from 1 to {MAX_INTERVAL}",
            param="stream_interval",
        )
