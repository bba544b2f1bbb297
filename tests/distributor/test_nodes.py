"""The nodes' own routes, the keys, and what is told of it all."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from lmserve.distributor import control
from tests.distributor.nodes import CHAT, whole


async def say(call: Any) -> tuple[int, Any]:
    async with call as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_a_node_is_added_asked_and_removed(make_node: Any, make_proxy: Any) -> None:
    node, proxy = await make_node(), await make_proxy()
    added = await say(proxy.post("/nodes/add", json={"url": node.url + "/"}))
    assert added == (200, "Added successfully")
    status, nodes = await say(proxy.get("/nodes/status"))
    assert status == 200
    assert list(nodes) == [node.url]
    shown = nodes[node.url]
    assert shown["models"] == ["mock"]
    assert (shown["unfinished"], shown["latency"], shown["speed"]) == (0, [], None)
    assert shown["alive"] is True
    assert (await proxy.chat())[0] == 200
    assert len((await say(proxy.get("/nodes/status")))[1][node.url]["latency"]) == 1
    removed = await say(proxy.post("/nodes/remove", json={"url": node.url}))
    assert removed == (200, "Deleted successfully")
    assert (await say(proxy.get("/nodes/status")))[1] == {}
    assert (await proxy.chat())[0] == 503


async def test_a_node_with_models_is_not_contacted(make_proxy: Any, make_bare: Any) -> None:
    node = await make_bare(whole(b"{}"), model="other")
    proxy = await make_proxy(health_interval_s=60.0)
    told = {"models": ["a", "b"], "speed": 7, "latency": [1.5], "unfinished": 3, "role": 1}
    await say(proxy.post("/nodes/add", json={"url": node.url, "status": told}))
    shown = (await say(proxy.get("/nodes/status")))[1][node.url]
    assert (shown["models"], shown["speed"], shown["latency"]) == (["a", "b"], 7.0, [1.5])
    again = {"models": ["c"]}  # a heart-beat
    await say(proxy.post("/nodes/add", json={"url": node.url, "status": again}))
    shown = (await say(proxy.get("/nodes/status")))[1][node.url]
    assert (shown["models"], shown["speed"]) == (["c"], 7.0)


async def test_remove_by_query(make_proxy: Any, dead_url: str) -> None:
    proxy = await make_proxy(dead_url)
    removed = await say(proxy.post("/nodes/remove", params={"node_url": dead_url}))
    assert removed == (200, "Deleted successfully")


@pytest.mark.parametrize("path", ["remove", "terminate"])
async def test_nodes_nobody_knows(make_proxy: Any, dead_url: str, path: str) -> None:
    proxy = await make_proxy()
    status, body = await say(proxy.post(f"/nodes/{path}", json={"url": dead_url}))
    assert (status, body["error"]["code"], body["code"]) == (404, "node_not_found", 404)
    status, body = await say(proxy.post(f"/nodes/{path}", params={"node_url": dead_url}))
    assert status == 404
    status, body = await say(proxy.post(f"/nodes/{path}"))
    assert status == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"url": 3}', b'{"url": "nowhere"}', b'{"url": "http://0.0.0.0:23333"}',
     b'{"url": "http://x:1", "status": {"models": 3}}', b"{}",
     b'{"url": "http://x:1", "status": {"models": [""]}}',
     b'{"url": "http://x:1", "status": {"models": ["m"], "speed": 0}}',
     b'{"url": "http://x:1", "status": {"models": ["m"], "speed": 1e308}}',
     b'{"url": "http://x:1", "status": {"models": ["m"], "latency": [1e308]}}',
     b'{"url": "http://a..b:1", "status": {"models": ["m"]}}'],
)  # fmt: skip
async def test_what_is_no_node(make_proxy: Any, body: bytes) -> None:
    proxy = await make_proxy()
    status, answer = await say(proxy.post("/nodes/add", data=body))
    assert status == 400
    assert answer["error"]["message"]
    assert (await say(proxy.get("/nodes/status")))[1] == {}


async def test_there_is_a_most_of_nodes_and_of_their_models(
    make_proxy: Any, make_bare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_NODES", 1)
    proxy, node = await make_proxy(), await make_bare()
    told = {"models": [f"m{number}" for number in range(4097)]}
    status, body = await say(proxy.post("/nodes/add", json={"url": node.url, "status": told}))
    assert (status, body["error"]["param"]) == (400, "status.models")
    for _ in range(2):  # a heart-beat is always taken
        assert (await say(proxy.post("/nodes/add", json={"url": node.url})))[0] == 200
    other = {"url": node.url + "/other", "status": {"models": ["m"]}}
    status, body = await say(proxy.post("/nodes/add", json=other))
    assert (status, body["error"]["code"]) == (409, "too_many_nodes")
    assert proxy.known() == [node.url]


async def test_a_node_that_cannot_be_asked_is_not_added(
    make_proxy: Any, make_bare: Any, make_app: Any, dead_url: str
) -> None:
    proxy = await make_proxy()
    silent = await make_app(web.Application())  # it is some server, with no models
    for url in (dead_url, silent):
        status, body = await say(proxy.post("/nodes/add", json={"url": url}))
        assert (status, body["error"]["code"]) == (503, "node_unavailable")
        assert url in body["message"]
    assert (await say(proxy.get("/nodes/status")))[1] == {}


async def test_a_node_that_says_no_end_of_it_is_not_added(make_proxy: Any, make_app: Any) -> None:
    async def say_on(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 2**16)

    app = web.Application()
    app.router.add_get("/v1/models", say_on)
    proxy, url = await make_proxy(health_timeout_s=60.0), await make_app(app)
    status, body = await say(proxy.post("/nodes/add", json={"url": url}))
    assert (status, body["error"]["code"]) == (503, "node_unavailable")
    assert "bytes" in body["message"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/responses", "/terminate"])
async def test_a_node_has_nobody_else_asked(make_proxy: Any, make_app: Any, path: str) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == path:
            return web.Response(status=307, headers={"Location": "/elsewhere"})
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    url = await make_app(app)
    proxy = await make_proxy(health_interval_s=60.0)
    told = {"models": ["m"]} if path != "/v1/models" else None
    await say(proxy.post("/nodes/add", json={"url": url, "status": told}))
    if path == "/health":
        await proxy.until(lambda: "elsewhere" in proxy.node(url).reason)
    elif path == "/v1/responses":
        async with proxy.session.ws_connect(path) as socket:
            await socket.send_json({"type": "response.create", "input": "x"})
            assert (await socket.receive_json())["error"]["code"] == "node_unavailable"
    elif path == "/terminate":
        assert (await say(proxy.post("/nodes/terminate", json={"url": url})))[0] == 503
    assert path in asked
    assert "/elsewhere" not in asked


async def test_models_are_listed_once_and_choose_their_node(
    make_node: Any, make_proxy: Any
) -> None:
    one, two, three = await make_node("a"), await make_node("b"), await make_node("b")
    proxy = await make_proxy(one.url, two.url, three.url)
    status, models = await say(proxy.get("/v1/models"))
    assert status == 200
    assert [model["id"] for model in models["data"]] == ["a", "b"]
    for name in ("a", "b"):
        answered, body = await proxy.chat(model=name)
        assert (answered, body["model"]) == (200, name)
        async with proxy.get(f"/v1/models/{name}") as response:
            assert (await response.json())["id"] == name
    assert len(one.engine.submits) == 1
    status, body = await proxy.chat(model="c")
    assert (status, body["error"]["code"], body["param"]) == (404, "model_not_found", "model")


async def test_no_nodes(make_proxy: Any) -> None:
    proxy = await make_proxy()
    assert (await say(proxy.get("/health")))[0] == 503
    assert (await say(proxy.get("/v1/models"))) == (200, {"object": "list", "data": []})
    for path in ("/v1/chat/completions", "/v1/chat/interactive", "/anything"):
        async with proxy.post(path, json=CHAT) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["error"]["code"] == "node_unavailable"


async def test_terminate(make_node: Any, make_proxy: Any, make_app: Any) -> None:
    refuses = await make_node()
    asked = []

    async def terminate(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    app = web.Application()
    app.router.add_get("/terminate", terminate)
    obeys, other = await make_app(app), await make_app(app_like(terminate))
    proxy = await make_proxy()
    for url in (refuses.url, obeys, other):
        await say(proxy.post("/nodes/add", json={"url": url, "status": {"models": ["m"]}}))
    status, body = await say(proxy.post("/nodes/terminate", json={"url": refuses.url}))
    assert (status, refuses.url in body["message"]) == (503, True)
    status, _ = await say(proxy.post("/nodes/terminate", json={"url": obeys}))
    assert status == 200
    assert asked == ["/terminate"]
    status, body = await say(proxy.get("/nodes/terminate_all"))
    assert status == 503  # one refuses still
    assert asked == ["/terminate"] * 2
    assert list((await say(proxy.get("/nodes/status")))[1]) == [refuses.url]


@pytest.mark.parametrize(
    "page", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://other.example"}]
)
async def test_no_other_page_changes_the_nodes(
    make_proxy: Any, dead_url: str, page: dict[str, str]
) -> None:
    proxy = await make_proxy()
    crossing = {**page, "Content-Type": "text/plain"}
    body = {"url": dead_url, "status": {"models": ["m"]}}
    status, error = await say(proxy.post("/nodes/add", json=body, headers=crossing))
    assert (status, error["error"]["code"]) == (403, "cross_site")
    assert (await say(proxy.get("/nodes/terminate_all", headers=crossing)))[0] == 403
    assert (await say(proxy.get("/nodes/status")))[1] == {}
    async with proxy.session.head("/nodes/terminate_all") as response:
        assert response.status == 404  # to look ends nothing


def app_like(terminate: Any) -> web.Application:
    app = web.Application()
    app.router.add_get("/terminate", terminate)
    return app


async def test_keys_guard_everything_but_health(make_node: Any, make_proxy: Any) -> None:
    node = await make_node(api_keys=("secret", "other"))
    proxy = await make_proxy(node.url, api_keys=("secret", "second"))
    calls = [
        ("GET", "/nodes/status"),
        ("POST", "/nodes/add"),
        ("POST", "/nodes/remove"),
        ("GET", "/nodes/terminate_all"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/"),
        ("POST", "/v1/chat/completions"),
    ]
    for method, path in calls:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            async with proxy.session.request(method, path, headers=headers) as response:
                assert response.status == 401, path
                assert (await response.json())["error"]["code"] == "invalid_api_key"
    assert (await say(proxy.get("/health")))[0] == 200
    for headers in ({"Authorization": "Bearer secret"}, {"X-Api-Key": "secret"}):
        async with proxy.post("/v1/chat/completions", json=CHAT, headers=headers) as response:
            assert response.status == 200
    headers = {"Authorization": "Bearer second"}
    status, models = await say(proxy.get("/v1/models", headers=headers))
    assert (status, models["data"][0]["id"]) == (200, "mock")


async def test_a_browser_asks_the_node_whether_its_page_may_call(
    make_node: Any, make_proxy: Any
) -> None:
    page = "http://page.example"
    node = await make_node(allow_origins=(page,), api_keys=("secret",))
    proxy = await make_proxy(node.url, api_keys=("secret",))
    asks = {"Origin": page, "Access-Control-Request-Method": "POST"}
    path = "/v1/chat/completions"
    async with proxy.session.options(path, headers=asks) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == page
    headers = {"Origin": page, "Authorization": "Bearer secret"}
    async with proxy.post(path, json=CHAT, headers=headers) as response:
        assert response.headers["Access-Control-Allow-Origin"] == page
    async with proxy.session.options(path) as response:
        assert response.status == 401


async def test_a_server_registers_and_takes_leave_with_its_key(
    make_node: Any, make_proxy: Any
) -> None:
    proxy = await make_proxy(api_keys=("secret",), headers={"Authorization": "Bearer secret"})
    node = await make_node(api_keys=("secret",), proxy_url=proxy.url)
    await proxy.until(lambda: proxy.known() == [node.url])
    assert (await proxy.chat(model="mock"))[0] == 200
    await node.stop()
    assert proxy.known() == []


async def test_metrics(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    await proxy.chat()
    async with proxy.get("/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    label = f'{{node="{node.url}"}}'
    assert f"lmserve_proxy_requests_total{label} 1.0" in text
    assert f"lmserve_proxy_unfinished{label} 0.0" in text
    assert f"lmserve_proxy_node_alive{label} 1.0" in text
    assert f"lmserve_proxy_request_seconds_count{label} 1.0" in text
    await say(proxy.post("/nodes/remove", json={"url": node.url}))
    async with proxy.get("/metrics") as response:
        assert node.url not in await response.text()


async def test_no_other_route_of_the_nodes(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    for path in ("/nodes/add", "/nodes/", "/nodes/what"):
        status, body = await say(proxy.get(path))
        assert (status, body["error"]["code"]) == (404, "not_found")
        assert "/nodes/status" in body["message"]


async def test_a_node_that_comes_back_with_another_model(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(whole(b"{}"), model="old")
    proxy = await make_proxy(node.url)
    assert proxy.node(node.url).models == ("old",)
    port = int(node.url.rsplit(":", 1)[1])
    await node.stop()
    await proxy.until(lambda: not proxy.node(node.url).alive)
    node.model = "new"
    await node.start(port)
    await proxy.until(lambda: proxy.node(node.url).alive)
    assert proxy.node(node.url).models == ("new",)


async def test_a_removed_node_may_finish(make_node: Any, make_proxy: Any) -> None:
    node = await make_node(tokens_s=50.0)
    proxy = await make_proxy(node.url)
    body = CHAT | {"stream": True, "max_tokens": 10, "ignore_eos": True}
    async with proxy.post("/v1/chat/completions", json=body) as response:
        assert (await say(proxy.post("/nodes/remove", json={"url": node.url})))[0] == 200
        assert b'"finish_reason":"length"' in await response.read()
