"""The results as tables: what was measured, beside what others were measured at before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bench.gpu import reference
from bench.gpu.parts import CHECKED
from bench.gpu.record import OK
from bench.gpu.rows import CASES, LMSERVE, VLLM, Case
from bench.gpu.shapes import LARGE, SMALL
from lmserve.bench.figures import median
from lmserve.bench.table import Cell, table

Results = Mapping[str, Any]  # a part's content by its name
NOT_RUN = "not run"


def markdown(results: Results) -> str:
    sections = (
        ("The card", card(results)),
        ("Checks", checks(results)),
        ("Qwen3-8B shape, offline", offline(results, LARGE)),
        ("Qwen3-0.6B shape, offline", offline(results, SMALL)),
        ("Qwen3-8B shape, over HTTP, 512 to 128 tokens", http(results)),
        ("From the command to the first answer", starts(results)),
        ("Decode steps", steps(results)),
        ("What did not run, or failed", failures(results)),
    )
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in sections if text)


def figures(results: Results, part: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = results.get(part, {}).get("figures", {})
    return found


def rounds(results: Results, part: str) -> list[Mapping[str, Any]]:
    """The figures of a part's rounds, in order."""
    names = [name for name in results if re.fullmatch(rf"{re.escape(part)}(-\d+)?", name)]
    return [figures(results, name) for name in sorted(names)]


def middle(results: Results, part: str, row: str, name: str) -> float | None:
    values = [found[row][name] for found in rounds(results, part) if row in found]
    return median(values) if values else None


def ratio(of: float | None, to: float | None) -> str:
    return f"{of / to:.2f}" if of and to else "-"


# --- tables ---------------------------------------------------------------------------------


def card(results: Results) -> str:
    found = figures(results, "facts")
    if not found:
        return NOT_RUN
    smi, of = found.get("nvidia_smi_after", {}), found.get("card", {})
    clocks = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "driver_version")
    rows: list[list[Cell]] = [
        ["card", of.get("name", "none: no figure here is of a GPU")],
        *([name, smi[name]] for name in clocks if name in smi),
        ["reads, TB/s", str(found.get("read_tb_s"))],
        ["bf16 products, TFLOP/s", str(found.get("gemm_tflop_s"))],
        *([name, value] for name, value in found.get("versions", {}).items()),
        ["commit", found.get("machine", {}).get("commit") or "-"],
    ]
    return table(["", "is"], rows)


def checks(results: Results) -> str:
    rows: list[list[Cell]] = []
    for name in CHECKED:
        content = results.get(f"check-{name}")
        done = content["checks"] if content else []
        passed = sum(check["ok"] for check in done)
        rows.append([name, content["status"] if content else NOT_RUN, passed, len(done) - passed])
    return table(["checks", "state", "passed", "failed"], rows)


def offline(results: Results, shape: str) -> str:
    rows = [_offline_row(results, shape, case) for case in CASES]
    headers = (
        *("requests, tokens", "lmserve tok/s", "vLLM tok/s, same run", "times vLLM"),
        *("vLLM 0.26.0, earlier", "times that", "LMDeploy 0.18.0, earlier", "limit"),
    )
    return table(headers, rows)


def _offline_row(results: Results, shape: str, case: Case) -> list[Cell]:
    ours, peer = (
        middle(results, f"rows-{engine}-{shape}", case.name, case.counts)
        for engine in (LMSERVE, VLLM)
    )
    then = reference.OFFLINE[shape].get(case.name)
    title = f"{case.num_requests}, {case.prompt_tokens} to {case.output_tokens}"
    return [
        title if case.counts == "out_tok_s" else f"{title} (prompts too)",
        NOT_RUN if ours is None else ours,
        NOT_RUN if peer is None else peer,
        ratio(ours, peer),
        then.vllm if then else None,
        ratio(ours, then.vllm if then else None),
        then.lmdeploy if then else None,
        then.limit if then else None,
    ]


def http(results: Results) -> str:
    """Tokens a second, and the median time to the first."""
    tables = []
    for figure, title, at in (("out_tok_s", "tok/s", 0), ("ttft_ms", "TTFT ms", 1)):
        rows: list[list[Cell]] = []
        for users, then in reference.HTTP.items():
            name = f"{users} users, 512->128"
            ours, peer = (
                middle(results, f"http-{engine}", name, figure) for engine in (LMSERVE, VLLM)
            )
            rows.append(
                [
                    *(users, NOT_RUN if ours is None else ours),
                    *(NOT_RUN if peer is None else peer, ratio(ours, peer)),
                    *(then[at], ratio(ours, then[at])),
                ]
            )
        headers = (
            *("users", f"lmserve {title}", "vLLM, same run", "times vLLM"),
            *("vLLM 0.26.0, earlier", "times that"),
        )
        tables.append(table(headers, rows))
    return "\n\n".join(tables)


def starts(results: Results) -> str:
    names = ("ready-dummy", "ready-disk", "http-lmserve", "http-vllm")
    rows: list[list[Cell]] = [
        [name, figures(results, name).get("start_s", NOT_RUN)] for name in names
    ]
    rows.append(["vLLM 0.26.0, earlier", reference.START_S])
    return table(["part", "seconds"], rows)


def steps(results: Results) -> str:
    """Each number of rows, and the kernels that take most."""
    parts = [name for name in results if name.startswith("profile-")]
    return "\n\n".join(
        _step(f"{part.removeprefix('profile-')}, {rows}", found)
        for part in parts
        for rows, found in figures(results, part).items()
    )


def _step(title: str, found: Mapping[str, Any]) -> str:
    told = [f"a step {found['step_us']} us"]
    if "busy_us" in found:
        told += [f"device busy {found['busy_us']} us", f"gaps {found['gap_us']} us"]
        told += [f"{found['kernels_a_step']} kernels"]
    rows: list[Sequence[Cell]] = [
        [f"`{each['name'][:80]}`", each["calls"], each["us"]] for each in found["kernels"][:15]
    ]
    return f"{title}: {', '.join(told)}\n\n{table(['kernel', 'calls a step', 'us a step'], rows)}"


def failures(results: Results) -> str:
    lines = []
    for name, content in results.items():
        if content["status"] != OK:
            lines.append(f"- {name}: {content['status']}; {content['error'] or 'checks failed'}")
        for check in content["checks"]:
            if not check["ok"]:
                why = check.get("why") or f"error {check.get('error')} over {check.get('bound')}"
                lines.append(f"  - {check['name']}: {why}")
    return "\n".join(lines)
