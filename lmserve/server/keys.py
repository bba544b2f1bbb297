"""What the routes share, held by the application under these keys."""

from __future__ import annotations

from aiohttp import web

from lmserve.bridge.handle import EngineHandle
from lmserve.protocol.openapi import Document
from lmserve.service.admission import BodyBytes
from lmserve.service.answers.answers import Answers
from lmserve.service.batches.batches import Batches
from lmserve.service.exposition.exposition import Exposition
from lmserve.service.generate import Service
from lmserve.service.loop_lag import LoopLag
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.streams.resumable import Resumable
from lmserve.service.streams.streams import Streams
from lmserve.service.warm.drafts import Drafts
from lmserve.service.warm.warmth import Warmth
from lmserve.settings import Settings

SETTINGS = web.AppKey("settings", Settings)
HANDLE = web.AppKey("handle", EngineHandle)
SERVICE = web.AppKey("service", Service)
SESSIONS = web.AppKey("sessions", Sessions)
STREAMS = web.AppKey("streams", Streams)
RESUMABLE = web.AppKey("resumable", Resumable)
ANSWERS = web.AppKey("answers", Answers)
WARMTH = web.AppKey("warmth", Warmth)
DRAFTS = web.AppKey("drafts", Drafts)
BATCHES = web.AppKey("batches", Batches)
METRICS = web.AppKey("metrics", Metrics)
EXPOSITION = web.AppKey("exposition", Exposition)
LOOP_LAG = web.AppKey("loop_lag", LoopLag)
BODY_BYTES = web.AppKey("body_bytes", BodyBytes)
OPENAPI = web.AppKey("openapi", Document)
