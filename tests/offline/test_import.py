"""`import lmserve` costs next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lmserve

CHECK = """
import sys
import lmserve
heavy = ["torch", "numpy", "transformers", "tokenizers", "aiohttp", "msgspec", "asyncio"]
print([name for name in heavy if name in sys.modules])
from lmserve import LLM, SamplingParams
print("torch" in sys.modules)
"""


def test_importing_it_is_light_and_its_names_need_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_every_name_is_there_and_others_are_not() -> None:
    for name in lmserve.__all__:
        assert getattr(lmserve, name) is not None
    with pytest.raises(AttributeError, match="module 'lmserve' has no attribute 'LMM'"):
        _ = lmserve.LMM
