"""The one validator: every limit on a request, for every route and transport.

Protocol modules check types; what a value may be is decided here and nowhere else. One file a
subject.
"""

from __future__ import annotations

from lmserve.service.limits.field import name_of, prompt_param
from lmserve.service.limits.prompt import (
    MAX_TEXTS,
    check_length,
    check_prompt,
    check_shown,
    check_texts,
    fit,
)
from lmserve.service.limits.sampling import changed, sampling_params, seed_after
from lmserve.service.limits.tokens import attainable, with_bad_words
from lmserve.service.limits.told import (
    check_choices,
    check_inputs,
    check_labels,
    check_one,
    check_rated,
    check_sum,
    check_told,
    num_made,
)
from lmserve.service.limits.tools import check_thinking, check_tools
from lmserve.service.limits.turn import check_metadata, check_turn

__all__ = [
    "MAX_TEXTS",
    "attainable",
    "changed",
    "check_choices",
    "check_inputs",
    "check_labels",
    "check_length",
    "check_metadata",
    "check_one",
    "check_prompt",
    "check_rated",
    "check_shown",
    "check_sum",
    "check_texts",
    "check_thinking",
    "check_told",
    "check_tools",
    "check_turn",
    "fit",
    "name_of",
    "num_made",
    "prompt_param",
    "sampling_params",
    "seed_after",
    "with_bad_words",
]
