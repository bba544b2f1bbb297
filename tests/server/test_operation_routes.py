"""Health, metrics, models, the document, the pages."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp import AiohttpClient

from lmserve import __version__
from lmserve.bridge.fake import FakeEngine
from lmserve.protocol.openapi import plain_path
from lmserve.server.app import build_app
from lmserve.server.routes.table import TABLE
from lmserve.settings import Settings


class LoadingEngine(FakeEngine):
    async def start(self) -> None:
        """Never gets ready."""


async def test_health_follows_the_engine(client: TestClient, fake: Any) -> None:
    async def health() -> tuple[int, str, str]:
        response = await client.get("/health")
        body = await response.json()
        assert set(body) == {"status", "message", "state", "heard_s", "node_id"}
        assert body["message"]
        assert body["heard_s"] >= 0
        return response.status, body["status"], body["state"]

    assert await health() == (200, "healthy", "ready")
    fake.hang()
    assert await health() == (503, "unhealthy", "stuck")
    fake.resume()
    fake.die()
    assert await health() == (503, "unhealthy", "restarting")
    fake.resume()
    assert await health() == (200, "healthy", "ready")
    await fake.sleep()
    assert await health() == (200, "sleeping", "sleeping")
    await fake.wake()
    assert await health() == (200, "healthy", "ready")


async def test_while_loading(aiohttp_client: AiohttpClient, settings: Settings) -> None:
    client = await aiohttp_client(build_app(settings, LoadingEngine()))
    health = await client.get("/health")
    assert (health.status, (await health.json())["status"]) == (503, "initializing")
    for response in (
        await client.get("/v1/models"),
        await client.get("/v1/models/mock"),
        await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}
        ),
        await client.post("/v1/completions", json={"prompt": "hi", "stream": True}),
    ):
        assert response.status == 503
        assert response.headers["Retry-After"] == "5"
        assert (await response.json())["error"]["code"] == "engine_unavailable"
    for path in ("/", "/chat", "/metrics", "/openapi.json", "/version"):
        assert (await client.get(path)).status == 200


async def test_models(client: TestClient) -> None:
    listed = await (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert (card["id"], card["object"], card["owned_by"]) == ("mock", "model", "lmserve")
    assert card["permission"][0]["object"] == "model_permission"
    assert await (await client.get("/v1/models/mock")).json() == card


async def test_metrics_parse(client: TestClient) -> None:
    await client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 3})
    response = await client.get("/metrics")
    assert response.content_type == "text/plain"
    families = {f.name: f for f in text_string_to_metric_families(await response.text())}
    generated = families["vllm:generation_tokens"].samples[0]
    assert generated.value == 3


async def test_version(client: TestClient) -> None:
    assert await (await client.get("/version")).json() == {"version": __version__}


async def test_no_route_is_undocumented(client: TestClient) -> None:
    document = await (await client.get("/openapi.json")).json()
    app = client.app
    assert app is not None
    served = {
        (route.method, plain_path(_written(route.resource)))
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    documented = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert served == documented


def _written(resource: Any) -> str:
    return str(resource.get_info().get("path") or resource.get_info()["formatter"])


async def test_the_document_is_valid_openapi(client: TestClient) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    document = await (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    await asyncio.to_thread(validator.validate, document)


async def test_the_document_describes_streams_and_errors(client: TestClient) -> None:
    document = await (await client.get("/openapi.json")).json()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"400", "404", "413", "429", "503"} <= set(chat["responses"])
    schema = document["components"]["schemas"]["ChatCompletionRequest"]
    assert "temperature" in schema["properties"]
    refs = set(_refs(document))
    assert refs == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


async def test_the_document_says_what_needs_a_key(client: TestClient) -> None:
    document = await (await client.get("/openapi.json")).json()
    assert document["security"] == [{}, {"key": []}]  # it depends on how the server was started
    for route in TABLE:
        operation = document["paths"][plain_path(route.path)][route.method.lower()]
        assert operation.get("security") == ([] if route.open else None), route.path
        assert ("401" in operation["responses"]) is not route.open, route.path


async def test_every_route_with_a_body_tells_of_its_limits(client: TestClient) -> None:
    document = await (await client.get("/openapi.json")).json()
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    read = [operation for operation in operations if "requestBody" in operation]
    assert read
    for operation in read:
        assert {"400", "413", "429"} <= set(operation["responses"]), operation["operationId"]


def _refs(value: Any) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


@pytest.mark.parametrize("path", ["/", "/chat"])
async def test_pages(client: TestClient, path: str) -> None:
    response = await client.get(path)
    assert response.status == 200
    assert response.content_type == "text/html"
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    again = await client.get(path, headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")


async def test_files_of_the_pages(client: TestClient) -> None:
    script = await client.get("/web/chat.js")
    assert script.status == 200
    assert "javascript" in script.content_type
    for name in ("nothing.js", "..%2fapp.py", ".hidden", "%2e%2e/keys.py"):
        response = await client.get(f"/web/{name}")
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "not_found"


def without(settings: Settings, part: str) -> Settings:
    changed = dataclasses.replace(settings.server, **{part: False})
    return dataclasses.replace(settings, server=changed)


async def test_without_docs(
    aiohttp_client: AiohttpClient, settings: Settings, fake: FakeEngine
) -> None:
    client = await aiohttp_client(build_app(without(settings, "docs"), fake))
    for path in ("/", "/chat", "/web/chat.js", "/openapi.json"):
        response = await client.get(path)
        assert response.status == 404
        assert "GET /" not in (await response.json())["error"]["message"]  # no such hint then
    for path in ("/health", "/metrics", "/v1/models"):
        assert (await client.get(path)).status == 200


async def test_without_metrics(
    aiohttp_client: AiohttpClient, settings: Settings, fake: FakeEngine
) -> None:
    client = await aiohttp_client(build_app(without(settings, "metrics"), fake))
    assert (await client.get("/metrics")).status == 404
    assert "/metrics" not in (await (await client.get("/openapi.json")).json())["paths"]
    assert (await client.get("/")).status == 200
