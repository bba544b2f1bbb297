"""What one part found, in a file of its own that is written at each addition: a part that is ended
early, or that ends its process, keeps what it had. Standard library only."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OK, FAILED, CUT_SHORT, LEFT_OUT = "ok", "failed", "cut short", "left out"
STATUSES = (OK, FAILED, CUT_SHORT, LEFT_OUT)


class Record:
    """`cut short` until `close` says otherwise."""

    def __init__(self, path: Path, part: str):
        self._path = path
        self._began_s = time.perf_counter()
        self.content: dict[str, Any] = {
            "part": part,
            "status": CUT_SHORT,
            "error": None,
            "seconds": 0.0,
            "figures": {},
            "checks": [],
        }
        self._write()

    def figure(self, name: str, value: Any) -> None:
        self.content["figures"][name] = value
        self._write()

    def check(self, name: str, error: float, bound: float, **more: Any) -> None:
        """It holds where `error` is at most `bound`: a number that is not finite is no result."""
        passed = math.isfinite(error) and error <= bound
        self._add(name, passed, error=_number(error), bound=_number(bound), **more)

    def holds(self, name: str, passed: bool, **more: Any) -> None:
        self._add(name, passed, **more)

    def _add(self, name: str, passed: bool, **more: Any) -> None:
        self.content["checks"].append({"name": name, "ok": passed, **more})
        self._write()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What is raised within is a check that failed, and what follows goes on."""
        try:
            yield
        except Exception as error:
            self._add(name, False, why=said(error), traceback=traceback.format_exc(limit=-6))

    def close(self, status: str = "", error: str | None = None) -> str:
        """Without a status: by whether all checks passed."""
        passed = all(check["ok"] for check in self.content["checks"])
        self.content |= {"status": status or (OK if passed else FAILED), "error": error}
        self._write()
        status = self.content["status"]
        assert status in STATUSES
        return status

    def _write(self) -> None:
        self.content["seconds"] = round(time.perf_counter() - self._began_s, 2)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(new, self._path)


def read(path: Path) -> dict[str, Any] | None:
    """None where the part never began."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _number(value: float) -> float | str:
    """JSON knows no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
