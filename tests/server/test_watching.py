"""What is told of a server, and whether its page, board and alerts speak of the same."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lmserve.edge.access_log import access
from lmserve.logs import JsonFormatter
from lmserve.server.lifecycle import Server, running_server
from lmserve.service.metrics import MAX_KEYS
from lmserve.settings import ServerSettings, Settings
from scripts import write_grafana_board

ROOT = Path(__file__).resolve().parents[2]
KEY = "sesame"
HELLO = {"prompt": "hi", "max_tokens": 2, "frobnicate": 1}
_ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \| (.*?) \|", re.M)
_METRIC = re.compile(r"\b((?:vllm|lmserve):[a-z0-9_]+|(?:process|python|lmserve_engine)_[a-z_]+)\b")


@pytest.fixture
async def server(settings: Settings, fake: Any) -> AsyncIterator[Server]:
    own = ServerSettings(server_port=0, model_name="mock", api_keys=(KEY,), max_queued_requests=2)
    async with running_server(dataclasses.replace(settings, server=own), fake) as running:
        yield running


@pytest.fixture
async def web(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as session:
        yield session


async def scrape(web: aiohttp.ClientSession) -> str:
    async with web.get("/metrics") as response:
        assert response.status == 200
        return await response.text()


def types(text: str) -> dict[str, str]:
    """As on the wire: a counter's name ends with `_total`."""
    return dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


async def used(web: aiohttp.ClientSession) -> str:
    """What is told once it was used in many ways."""
    async with web.post("/v1/completions", json=HELLO) as response:
        assert response.status == 200
    async with web.ws_connect("/v1/responses") as connected:
        await connected.send_json({"type": "nonsense"})
        await connected.receive()
    return await scrape(web)


async def test_the_page_has_every_metric(web: aiohttp.ClientSession) -> None:
    text = await used(web)
    told, seen = types(text), samples(text)
    rows = _ROW.findall((ROOT / "docs" / "metrics.md").read_text())
    assert {name: kind for name, kind, _ in rows} == told
    assert len(rows) == len(told)
    for name, kind, labels in rows:
        own = seen.get(f"{name}_bucket" if kind == "histogram" else name, [])
        wanted = set(re.findall(r"`([^`]+)`", labels))
        for sample_labels, _ in own:
            assert set(sample_labels) - {"model_name", "le"} == wanted, name


async def test_board_and_alerts_ask_for_what_is_told(web: aiohttp.ClientSession) -> None:
    told = types(await used(web))
    names = {*told}
    for name, kind in told.items():
        if kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
        if name.startswith("process_"):
            names.add(f"lmserve_engine_{name}")
    board = json.loads(write_grafana_board.FILE.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    rules = yaml.safe_load((ROOT / "config" / "prometheus" / "rules.yml").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(asked) > 30
    for expression in asked + alerts:
        found = set(_METRIC.findall(expression))
        assert found <= names, expression
        assert found or expression.startswith("up{")
        for one, other in ("()", "{}", "[]"):
            assert expression.count(one) == expression.count(other), expression


def test_the_board_is_as_it_was_written() -> None:
    assert write_grafana_board.FILE.read_text() == write_grafana_board.text(), (
        "run: python scripts/write_grafana_board.py"
    )
    board = write_grafana_board.board()
    places = [panel["gridPos"] for panel in board["panels"]]
    taken = {(place["x"] + x, place["y"]) for place in places for x in range(place["w"])}
    assert len(taken) == sum(place["w"] for place in places)  # none over another
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
    titles = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert titles == ["Users", "Load", "Engine", "Processes"]


def test_prometheus_reads_the_rules() -> None:
    folder = ROOT / "config" / "prometheus"
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    assert all((folder / name).is_file() for name in config["rule_files"])
    (group,) = yaml.safe_load((folder / "rules.yml").read_text())["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "$labels.instance" in rule["annotations"]["summary"]


async def test_http_answers_by_route(web: aiohttp.ClientSession) -> None:
    for path in ("/v1/models/mock", "/v1/models/other", "/no/such/route", "/%0avllm:x"):
        async with web.get(path):
            pass
    async with web.request("PROPFIND", "/v1/models"):
        pass
    async with web.ws_connect("/v1/responses"):
        pass
    answers: dict[tuple[str, str, str], float] = {}
    while not any("101" in labels for labels in answers):  # the connection ends a little later
        seen = samples(await scrape(web))
        answers = {
            (labels["method"], labels["route"], labels["status"]): value
            for labels, value in seen["lmserve:http_requests_total"]
            if labels["route"] != "/metrics"
        }
    assert answers == {
        ("GET", "/v1/models/{model}", "200"): 1,
        ("GET", "/v1/models/{model}", "404"): 1,
        ("GET", "none", "404"): 2,
        ("other", "none", "405"): 1,
        ("GET", "/v1/responses", "101"): 1,
    }
    timed = {labels["route"] for labels, _ in seen["lmserve:http_request_duration_seconds_count"]}
    assert timed - {"/metrics"} == {"/v1/models/{model}", "none"}


async def test_keys_are_told_by_their_names(
    server: Server, web: aiohttp.ClientSession, fake: Any
) -> None:
    async with web.post("/v1/completions", json=HELLO) as response:
        num_prompt = (await response.json())["usage"]["prompt_tokens"]
    fake.will_hang("a")
    async with web.post("/v1/completions", json=HELLO | {"stream": True}) as response:
        await response.content.readany()
        seen = samples(await scrape(web))
        (owner,) = server.service.load().num_by_owner
    told = {"key": "api-1", "model_name": "mock"}
    assert seen["lmserve:key_requests_total"] == [(told, 1)]
    assert seen["lmserve:key_requests_open"] == [(told, 1)]
    assert seen["lmserve:key_tokens_total"] == [
        (told | {"kind": "prompt"}, num_prompt),
        (told | {"kind": "answer"}, 2),
    ]
    assert KEY not in str(seen)
    assert owner not in str(seen)


async def test_kinds_of_keys_are_bounded(server: Server) -> None:
    from lmserve.server.keys import METRICS

    metrics = server.app[METRICS]
    for number in range(MAX_KEYS + 50):
        metrics.rejected("requests", f"owner-{number}")
    assert len(metrics.keys) == MAX_KEYS + 1
    assert metrics.keys["other"].num_rejected == 50


async def test_a_line_of_the_access_log(
    web: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, access.name):
        headers = {"X-Request-Id": "r-7"}
        async with web.get("/v1/models/mock", headers=headers) as response:
            assert response.status == 200
        await scrape(web)
    record = next(record for record in caplog.records if record.name == access.name)
    told = json.loads(JsonFormatter().format(record))
    assert told["duration_ms"] >= 0
    fields = {name: told[name] for name in ("method", "path", "status", "key")}
    assert fields == {"method": "GET", "path": "/v1/models/mock", "status": 200, "key": "api-1"}


async def test_lines_on_the_way_have_the_requests_id(
    web: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, Any]] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    reader, root = Reader(), logging.getLogger("lmserve")
    root.addHandler(reader)
    try:
        with caplog.at_level(logging.DEBUG, "lmserve"):
            async with web.post(
                "/v1/completions", json=HELLO, headers={"X-Request-Id": "r-8"}
            ) as response:
                assert response.status == 200
            await scrape(web)
    finally:
        root.removeHandler(reader)
    own = [line["logger"] for line in lines if line.get("request_id") == "r-8"]
    assert own == ["lmserve.server.body", "lmserve.service.generate", "lmserve.access"]
