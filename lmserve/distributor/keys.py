"""Everything the distributor's application holds, by key."""

from __future__ import annotations

from aiohttp import ClientSession, web

from lmserve.distributor.health import Watch
from lmserve.distributor.metrics import Metrics
from lmserve.distributor.nodes import Nodes
from lmserve.distributor.proxy import Proxy
from lmserve.distributor.settings import ProxySettings
from lmserve.distributor.socket.sockets import Sockets

SETTINGS = web.AppKey("settings", ProxySettings)
NODES = web.AppKey("nodes", Nodes)
METRICS = web.AppKey("metrics", Metrics)
SESSION = web.AppKey("session", ClientSession)  # the one pool, to all nodes
WATCH = web.AppKey("watch", Watch)
PROXY = web.AppKey("proxy", Proxy)
SOCKETS = web.AppKey("sockets", Sockets)
