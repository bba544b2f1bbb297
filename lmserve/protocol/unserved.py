"""Fields that clients know and that not every route serves.

They are declared with `extra={UNSERVED: neutral}`: their neutral values pass, any other is
refused by `lmserve.protocol.decode`, never ignored. A route that serves one declares it anew.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

UNSERVED = "unserved"


class UnservedFields(Struct, kw_only=True):
    """What no route serves, and what only some do."""

    # served by chat and completions, where one connection has the answer
    n: Annotated[
        int | None, Meta(description="Not served here: 1 answer.", extra={UNSERVED: (1,)})
    ] = None
    prompt_logprobs: Annotated[
        int | None, Meta(description="Not served here.", extra={UNSERVED: ()})
    ] = None
    include_stop_str_in_output: Annotated[
        bool | None, Meta(description="Not served here.", extra={UNSERVED: (False,)})
    ] = None
    return_token_ids: Annotated[
        bool | None, Meta(description="Not served here.", extra={UNSERVED: (False,)})
    ] = None
    return_progress: Annotated[
        bool | None, Meta(description="Not served here.", extra={UNSERVED: (False,)})
    ] = None
    return_timings: Annotated[
        bool | None, Meta(description="Not served here.", extra={UNSERVED: (False,)})
    ] = None
    stream_interval: Annotated[
        int | None, Meta(description="Not served here.", extra={UNSERVED: (1,)})
    ] = None
    # vLLM's
    use_beam_search: Annotated[
        bool | None, Meta(description="Not served.", extra={UNSERVED: (False,)})
    ] = None
    length_penalty: Annotated[
        float | None, Meta(description="Not served.", extra={UNSERVED: (1.0,)})
    ] = None
    truncate_prompt_tokens: Annotated[
        int | None, Meta(description="Not served.", extra={UNSERVED: ()})
    ] = None
    logits_processors: Annotated[
        list[Any] | None, Meta(description="Not served.", extra={UNSERVED: ([],)})
    ] = None
    prompt_embeds: Annotated[
        str | list[str] | None, Meta(description="Not served.", extra={UNSERVED: ("", [])})
    ] = None
    # LMDeploy's
    adapter_name: Annotated[
        str | None, Meta(description="Not served yet.", extra={UNSERVED: ("",)})
    ] = None
    image_data: Annotated[
        str | dict[str, Any] | list[Any] | None,
        Meta(description="Not served.", extra={UNSERVED: ("", [])}),
    ] = None
    media_io_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None
    mm_processor_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None
    migration_request: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ()})
    ] = None
    with_cache: Annotated[
        bool | None, Meta(description="Not served.", extra={UNSERVED: (False,)})
    ] = None
    preserve_cache: Annotated[
        bool | None, Meta(description="Not served.", extra={UNSERVED: (False,)})
    ] = None
    return_logprob: Annotated[
        bool | None, Meta(description="Not served here.", extra={UNSERVED: (False,)})
    ] = None
    return_routed_experts: Annotated[
        bool | None, Meta(description="Not served.", extra={UNSERVED: (False,)})
    ] = None
    repetition_ngram_size: Annotated[
        int | None, Meta(description="Not served yet.", extra={UNSERVED: (0,)})
    ] = None
    repetition_ngram_threshold: Annotated[
        int | None, Meta(description="Not served yet.", extra={UNSERVED: (0,)})
    ] = None
