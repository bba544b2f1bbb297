"""lmserve: one async server that serves one language model to many people at once.

In a script, without a server: `from lmserve import LLM, SamplingParams` (docs/offline.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmserve.offline.answers import Answer
    from lmserve.offline.llm import LLM
    from lmserve.offline.sampling import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "Answer", "SamplingParams", "__version__"]

# found when first asked for: importing lmserve costs next to nothing
_WHERE = {
    "Answer": "lmserve.offline.answers",
    "LLM": "lmserve.offline.llm",
    "SamplingParams": "lmserve.offline.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
