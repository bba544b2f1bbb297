"""Runs one part: `python -m bench.gpu.child '{"name": …, "function": …, …}'`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

from bench.gpu.options import Options
from bench.gpu.record import FAILED, OK, Record, said


def main(asked: str) -> int:
    told = json.loads(asked)
    options = Options(**told["options"] | {"shapes": tuple(told["options"]["shapes"])})
    if not options.cuda:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before any module with kernels
    record = Record(options.file(told["name"]), told["name"])
    module, _, name = told["function"].partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        function(options, record, **told["arguments"])
    except Exception as error:
        traceback.print_exc()
        record.close(FAILED, said(error))
        return 1
    return 0 if record.close() == OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
