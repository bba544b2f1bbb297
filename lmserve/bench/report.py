"""What a bench command leaves behind: a JSON document that says on what it was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmserve.atomic import replacing
from lmserve.bench.machine import describe


def document(
    bench: str, arguments: Mapping[str, Any], results: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "bench": bench,
        "machine": describe(),
        "arguments": dict(arguments),
        "results": dict(results),
    }


def write_json(path: str | Path, told: Mapping[str, Any]) -> None:
    with replacing(Path(path)) as file:
        file.write(json.dumps(told, indent=2).encode() + b"\n")
