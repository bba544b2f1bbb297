"""The distributor's own routes: its nodes, their models, its health and metrics."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from lmserve.distributor.errors import NodeUnavailable, TooManyNodes
from lmserve.distributor.health import UNREACHABLE
from lmserve.distributor.keys import METRICS, NODES, PROXY, SESSION, WATCH
from lmserve.distributor.metrics import CONTENT_TYPE
from lmserve.distributor.nodes import MAX_NODES, Node, node_url
from lmserve.edge.middlewares import path_of
from lmserve.errors import InvalidField, NotFound
from lmserve.protocol.decode import decode
from lmserve.protocol.models import ModelCard, ModelList, ModelPermission

T = TypeVar("T", bound=Struct)

routes = web.RouteTableDef()


class NodeStatus(Struct):
    """What a node says of itself."""

    models: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=4096)
    ] = []
    unfinished: Any = None  # counted here
    latency: list[Annotated[float, Meta(ge=0, le=1e9)]] = []
    speed: Annotated[float, Meta(ge=1e-9, le=1e18)] | None = None  # with bounds: sums stay finite
    role: Any = None  # LMDeploy's


class AddNode(Struct):
    url: str
    status: NodeStatus | None = None


class NamedNode(Struct):
    url: str


@routes.get("/nodes/status")
async def status(request: web.Request) -> web.Response:
    return _json({node.url: _shown(node) for node in request.app[NODES]})


@routes.post("/nodes/add")
async def add(request: web.Request) -> web.Response:
    """A new node, or the heart-beat of a known one."""
    asked = await _asked(request, AddNode)
    url, told = node_url(asked.url), asked.status or NodeStatus()
    nodes, watch = request.app[NODES], request.app[WATCH]
    models = tuple(dict.fromkeys(told.models)) or await watch.models(url)
    node = nodes.find(url)
    if node is None:
        if len(nodes) >= MAX_NODES:
            raise TooManyNodes(f"there are {MAX_NODES} nodes, the most there may be: remove some")
        node = Node(url, configured=False)
        nodes.add(node)
        watch.follow(node)
        node.models = models  # before it is logged
        node.up()
    node.seen()
    node.models, node.told = models, bool(told.models)
    node.speed = told.speed or node.speed
    if not node.latency:
        node.latency.extend(told.latency)
    if not node.alive:
        node.doubted.set()
    return _json("Added successfully")


@routes.post("/nodes/remove")
async def remove(request: web.Request) -> web.Response:
    """What runs there may finish."""
    node = await _named(request)
    request.app[NODES].remove(node)
    node.doubted.set()  # its watch ends
    return _json("Deleted successfully")


@routes.post("/nodes/terminate")
async def terminate(request: web.Request) -> web.Response:
    node = await _named(request)
    await _terminate(request.app, node)
    return _json("Terminated successfully")


@routes.get("/nodes/terminate_all", allow_head=False)
async def terminate_all(request: web.Request) -> web.Response:
    refusals = []
    for node in request.app[NODES]:
        try:
            await _terminate(request.app, node)
        except NodeUnavailable as error:
            refusals.append(error.message)
    if refusals:
        raise NodeUnavailable("; ".join(refusals))
    return _json("All nodes terminated successfully")


@routes.get("/v1/models")
async def models(request: web.Request) -> web.Response:
    """Of all nodes that live, each once."""
    cards: dict[str, ModelCard] = {}
    for node in request.app[NODES]:
        for name in node.models if node.alive else ():
            permission = ModelPermission(created=node.created)
            card = ModelCard(id=name, created=node.created, root=name, permission=[permission])
            cards.setdefault(name, card)
    return _json(ModelList(data=list(cards.values())))


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    nodes = request.app[NODES]
    alive = sum(node.alive for node in nodes)
    body = {"status": "ready" if alive else "no node", "nodes": len(nodes), "alive": alive}
    return _json(body, 200 if alive else 503)


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[METRICS].render(), headers={"Content-Type": CONTENT_TYPE})


@routes.route("*", "/nodes/{tail:.*}")
async def nowhere(request: web.Request) -> web.Response:
    """Never a node's."""
    raise NotFound(
        f"there is no {request.method} {path_of(request)}: there are GET /nodes/status and "
        "/nodes/terminate_all, POST /nodes/add, /nodes/remove and /nodes/terminate"
    )


async def _asked(request: web.Request, kind: type[T]) -> T:
    """The body, which must come as any other."""
    bodies = request.app[PROXY].bodies
    with bodies.empty() as body:
        await bodies.read(request, body)
        return decode(body.data, kind)[0]


async def _named(request: web.Request) -> Node:
    """The node in the query, as LMDeploy's documentation has it, or in the body, as its code."""
    url = request.query.get("node_url") or request.query.get("url")
    if url is None:
        if not request.can_read_body:
            raise InvalidField('name the node: {"url": …} or ?node_url=…', param="url")
        url = (await _asked(request, NamedNode)).url
    return request.app[NODES].get(url)


async def _terminate(app: web.Application, node: Node) -> None:
    """Ends the server, and drops it. Raises NodeUnavailable when it would not."""
    watch = app[WATCH]
    try:
        async with app[SESSION].get(
            node.url + "/terminate", headers=watch.admin_headers, timeout=watch.timeout
        ) as response:
            if response.status != 200:
                raise NodeUnavailable(f"{node.url} says {response.status}: it was not terminated")
    except UNREACHABLE as error:
        raise NodeUnavailable(f"{node.url} does not answer: {error}") from None
    app[NODES].remove(node)
    node.doubted.set()


def _shown(node: Node) -> dict[str, Any]:
    return {
        "models": node.models,
        "unfinished": node.unfinished,
        "latency": [round(each, 4) for each in node.latency],
        "speed": node.speed,
        "alive": node.alive,
        "reason": node.reason,
        "node_id": node.id,
        "configured": node.configured,
    }


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )
