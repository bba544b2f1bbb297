"""Checks and times lmserve on a GPU, part by part, and writes what it finds as JSON.

    python -m bench.gpu --out results                     # facts, checks, the offline table
    python -m bench.gpu --out results --parts ready http profile sweeps
    python -m bench.gpu --markdown results/results.json   # its tables; of several files as of one

docs/gpu.md says how to read it. Exit status: 0 where all that could run ran and passed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu.options import Options
from bench.gpu.parts import DEFAULT, GROUPS, Part, has_vllm, parts
from bench.gpu.processes import run_part
from bench.gpu.record import CUT_SHORT, LEFT_OUT, OK, Record, read
from bench.gpu.report import markdown
from bench.gpu.shapes import LARGE, SHAPES, SMALL

EXIT_TERMINATED = 143  # 128 + SIGTERM, as shells count
RESULTS = "results.json"
SHOWN = 12  # checks that failed, of a part
SLOWER = 4  # times as long a part may take with tiny models on a CPU that others use too
LEAST_S = 10.0  # less time is not worth a start
SPARE_S = 5.0  # of the budget, to end a part and write the results


def main() -> int:
    args = parse()
    if args.markdown is not None:
        print(markdown(merged(args.markdown)))
        return 0
    out = Path(args.out)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # ends what runs, too
    out.mkdir(parents=True, exist_ok=True)
    groups = GROUPS if "all" in args.parts else tuple(args.parts)
    options = options_of(args)
    ends_s = time.monotonic() + args.budget_s - SPARE_S if args.budget_s else float("inf")
    good = True
    for part in parts(options, groups):
        status = run(part, options, ends_s - time.monotonic())
        good &= status in (OK, LEFT_OUT) and not (status == LEFT_OUT and not part.needs)
        merge(out)
    print(f"results: {out / RESULTS}")
    return 0 if good else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="gpu-results", help="directory of the results")
    parser.add_argument(
        "--parts", nargs="+", choices=[*GROUPS, "all"], default=DEFAULT, metavar="PART",
        help=f"of {', '.join(GROUPS)} or all; default: {' '.join(DEFAULT)}",
    )  # fmt: skip
    parser.add_argument(
        "--shapes", nargs="+", choices=list(SHAPES), default=(LARGE, SMALL), help="models measured"
    )
    parser.add_argument("--budget-s", type=float, default=540, help="for all parts; 0: no limit")
    parser.add_argument("--rounds", type=int, default=1, help="of what is compared, in turn")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has vLLM")
    parser.add_argument("--checkpoint", action="store_true", help="part ready: also from disk")
    parser.add_argument("--smollm", default="", help="SmolLM2-135M for the checks, if it is there")
    parser.add_argument(
        "--models", default=str(Path(tempfile.gettempdir()) / "lmserve-gpu-models"),
        help="directory of the models that are made",
    )  # fmt: skip
    parser.add_argument("--device", default="cuda", help="cpu, with --tiny, checks the script")
    parser.add_argument("--tiny", action="store_true", help="tiny models, few repetitions")
    parser.add_argument(
        "--markdown", nargs="*", type=Path, metavar="FILE",
        help="show the tables of these results.json, of none the empty ones, and run nothing",
    )  # fmt: skip
    return parser.parse_args()


def options_of(args: argparse.Namespace) -> Options:
    on_cuda = args.device.startswith("cuda")
    return Options(
        out=args.out,
        models=args.models,
        device=args.device,
        tiny=args.tiny,
        shapes=tuple(args.shapes),
        peer_python=args.peer_python if on_cuda and has_vllm(args.peer_python) else "",
        rounds=args.rounds,
        checkpoint=args.checkpoint,
        smollm=args.smollm,
    )


def run(part: Part, options: Options, left_s: float) -> str:
    """Its status."""
    began_s = time.monotonic()
    why = part.needs or ("the time is over (--budget-s)" if left_s < LEAST_S else "")
    if why:
        status = Record(options.file(part.name), part.name).close(LEFT_OUT, why)
    else:
        limit_s = part.limit_s * (SLOWER if options.tiny else 1)
        status = run_part(part, options, min(limit_s, left_s))
    told = read(options.file(part.name)) or {"status": CUT_SHORT, "error": None, "checks": []}
    print(f"{part.name}: {told['status']}, {time.monotonic() - began_s:.0f} s", flush=True)
    if told["error"]:
        print(f"  {told['error']}", flush=True)
    failed = [check for check in told["checks"] if not check["ok"]]
    for check in failed[:SHOWN]:
        said = {name: value for name, value in check.items() if name != "traceback"}
        print(f"  {json.dumps(said)}", flush=True)
    if len(failed) > SHOWN:
        print(f"  and {len(failed) - SHOWN} more", flush=True)
    return status


def results_in(out: Path) -> dict[str, Any]:
    """By part; those of earlier calls with the same directory too."""
    return {
        content["part"]: content
        for path in sorted(out.glob("*.json"))
        if path.name != RESULTS and (content := read(path)) is not None
    }


def merged(files: list[Path]) -> dict[str, Any]:
    """Of a part that is in several, the last."""
    return {name: part for file in files for name, part in json.loads(file.read_text()).items()}


def merge(out: Path) -> None:
    (out / RESULTS).write_text(json.dumps(results_in(out), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
