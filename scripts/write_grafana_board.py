"""Writes config/grafana/lmserve.json: rows of panels, from the list below."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "config" / "grafana" / "lmserve.json"
WIDTH, HEIGHT = 24, 7  # of a row; of a panel
SELECT = '{instance=~"$instance"}'
RATE = SELECT + "[$__rate_interval]"

Panel = tuple[str, str, list[tuple[str, str]]]  # title, unit, queries with their legends


def quantiles(name: str) -> list[tuple[str, str]]:
    return [
        (f"histogram_quantile({q}, sum by (le) (rate({name}_bucket{RATE})))", f"p{q * 100:.0f}")
        for q in (0.5, 0.95, 0.99)
    ]


def under(name: str, bound: str) -> str:
    """The share of what a histogram saw that was not above one of its bounds."""
    least = SELECT[:-1] + f',le="{bound}"}}'
    part = f"sum(rate({name}_bucket{least}[$__rate_interval]))"
    return f"{part} / sum(rate({name}_count{RATE}))"


def rate(name: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({name}{RATE}))"


def ratio(part: str, whole: str) -> str:
    return f"{rate(part)} / {rate(whole)}"


ROWS: list[tuple[str, list[Panel]]] = [
    (
        "Users",
        [
            ("Time to first token", "s", quantiles("vllm:time_to_first_token_seconds")),
            ("Between tokens", "s", quantiles("vllm:inter_token_latency_seconds")),
            ("Whole answer", "s", quantiles("vllm:e2e_request_latency_seconds")),
            (
                "In time (goodput)",
                "percentunit",
                [
                    (under("vllm:time_to_first_token_seconds", "2.5"), "first token in 2.5 s"),
                    (under("vllm:inter_token_latency_seconds", "0.2"), "token in 0.2 s"),
                ],
            ),
            (
                "Requests by how they ended",
                "reqps",
                [(rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}")],
            ),
            (
                "HTTP answers by status",
                "reqps",
                [(rate("lmserve:http_requests_total", "status"), "{{status}}")],
            ),
        ],
    ),
    (
        "Load",
        [
            (
                "Requests",
                "short",
                [
                    (f"sum(vllm:num_requests_running{SELECT})", "running"),
                    (f"sum(vllm:num_requests_waiting{SELECT})", "waiting"),
                    (f"sum(lmserve:requests_open{SELECT})", "open"),
                ],
            ),
            (
                "Wait",
                "s",
                [
                    (f"max(lmserve:oldest_wait_seconds{SELECT})", "oldest"),
                    quantiles("vllm:request_queue_time_seconds")[1],
                ],
            ),
            (
                "Refused, by limit",
                "reqps",
                [(rate("vllm:admission_rejections_total", "reason"), "{{reason}}")],
            ),
            (
                "Tokens",
                "short",
                [
                    (rate("vllm:generation_tokens_total"), "generated a second"),
                    (rate("vllm:prompt_tokens_total"), "prompts a second"),
                ],
            ),
            (
                "Tokens by API key",
                "short",
                [(rate("lmserve:key_tokens_total", "key"), "{{key}}")],
            ),
            (
                "Connections",
                "short",
                [
                    (f"sum(lmserve:connections{SELECT})", "connections"),
                    (f"sum(lmserve:websockets{SELECT})", "WebSockets"),
                    (f'sum(lmserve:streams{SELECT[:-1]},state="open"}})', "streams"),
                ],
            ),
        ],
    ),
    (
        "Engine",
        [
            ("KV blocks", "short", [(f"sum by (state) (lmserve:kv_blocks{SELECT})", "{{state}}")]),
            (
                "Prompt tokens found in the cache",
                "percentunit",
                [
                    (
                        ratio("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
                        "found",
                    )
                ],
            ),
            (
                "Steps",
                "short",
                [
                    (rate("lmserve:engine_steps_total"), "steps a second"),
                    (
                        ratio(
                            "vllm:iteration_tokens_total_sum", "vllm:iteration_tokens_total_count"
                        ),
                        "tokens a step",
                    ),
                    (rate("vllm:num_preemptions_total"), "preemptions a second"),
                ],
            ),
            (
                "Proposed tokens that were right",
                "percentunit",
                [
                    (
                        ratio(
                            "vllm:spec_decode_num_accepted_tokens_total",
                            "vllm:spec_decode_num_draft_tokens_total",
                        ),
                        "right",
                    )
                ],
            ),
            (
                "State",
                "short",
                [
                    (f"max by (state) (lmserve:engine_state{SELECT}) > 0", "{{state}}"),
                    (f"max(lmserve:draining{SELECT}) > 0", "draining"),
                ],
            ),
            (
                "Starts and silence",
                "s",
                [
                    (f"max(lmserve:engine_silent_seconds{SELECT})", "silent for"),
                    (f"max(lmserve:engine_start_seconds{SELECT})", "last start took"),
                    (f"sum(increase(lmserve:engine_restarts_total{RATE}))", "restarts"),
                ],
            ),
        ],
    ),
    (
        "Processes",
        [
            (
                "Memory",
                "bytes",
                [
                    (f"sum(process_resident_memory_bytes{SELECT})", "server"),
                    (f"sum(lmserve_engine_process_resident_memory_bytes{SELECT})", "engine"),
                ],
            ),
            (
                "Cores",
                "short",
                [
                    (rate("process_cpu_seconds_total"), "server"),
                    (rate("lmserve_engine_process_cpu_seconds_total"), "engine"),
                ],
            ),
            ("Event loop lag", "s", quantiles("lmserve:loop_lag_seconds")),
            (
                "Tasks and descriptors",
                "short",
                [
                    (f"sum(lmserve:tasks{SELECT})", "tasks"),
                    (f"sum(process_open_fds{SELECT})", "descriptors"),
                ],
            ),
            ("Writes of conversations", "s", quantiles("lmserve:store_write_seconds")),
            (
                "Conversations",
                "bytes",
                [
                    (f"sum(lmserve:store_bytes{SELECT})", "store"),
                    (f"sum(lmserve:session_kv_disk_bytes{SELECT})", "KV on disk"),
                    (f"sum(lmserve:stream_bytes{SELECT})", "streams in memory"),
                ],
            ),
            (
                "Certificate",
                "s",
                [(f"min(lmserve:certificate_expires_seconds{SELECT}) - time()", "expires in")],
            ),
        ],
    ),
]


def board() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append({"type": "row", "title": title, "gridPos": place, "panels": []})
        y += 1
        for index, panel in enumerate(row):
            x, line = index % 3 * (WIDTH // 3), index // 3
            place = {"x": x, "y": y + line * HEIGHT, "w": WIDTH // 3, "h": HEIGHT}
            panels.append(_panel(*panel) | {"gridPos": place})
        y += (len(row) + 2) // 3 * HEIGHT
    for id, made in enumerate(panels, 1):
        made["id"] = id
    return {
        "uid": "lmserve",
        "title": "lmserve",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": [_data_source(), _instance()]},
        "panels": panels,
    }


_SOURCE = {"type": "prometheus", "uid": "${source}"}


def _panel(title: str, unit: str, queries: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list"}},
        "targets": [
            {"refId": chr(65 + index), "expr": expr, "legendFormat": legend, "datasource": _SOURCE}
            for index, (expr, legend) in enumerate(queries)
        ],
    }


def _data_source() -> dict[str, Any]:
    return {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _instance() -> dict[str, Any]:
    return {
        "name": "instance",
        "type": "query",
        "datasource": _SOURCE,
        "query": "label_values(lmserve:uptime_seconds, instance)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    return json.dumps(board(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
