"""What the routes share, held by the application under these keys."""

from __future__ import annotations

from aiohttp import web

from lmserve.bridge.handle import EngineHandle
from lmserve.service.admission import BodyBytes
from lmserve.service.generate import Service
from lmserve.service.metrics import Metrics
from lmserve.service.sessions import Sessions
from lmserve.settings import Settings

SETTINGS = web.AppKey("settings", Settings)
HANDLE = web.AppKey("handle", EngineHandle)
SERVICE = web.AppKey("service", Service)
SESSIONS = web.AppKey("sessions", Sessions)
METRICS = web.AppKey("metrics", Metrics)
BODY_BYTES = web.AppKey("body_bytes", BodyBytes)
OPENAPI = web.AppKey("openapi", bytes)
