"""GET /v1/models and /v1/models/{model}."""

from __future__ import annotations

import msgspec
from aiohttp import web

from lmserve.errors import EngineUnavailable
from lmserve.messages import EngineInfo
from lmserve.protocol.models import ModelCard, ModelList, ModelPermission
from lmserve.protocol.openapi import Operation
from lmserve.server.keys import HANDLE, SERVICE
from lmserve.server.routes.route import Route, json_response
from lmserve.service.catalog import Model


async def list_models(request: web.Request) -> web.Response:
    info = served_info(request)
    cards = [_card(model) for model in request.app[SERVICE].catalog.models(info)]
    return json_response(msgspec.json.encode(ModelList(data=cards)))


async def get_model(request: web.Request) -> web.Response:
    info = served_info(request)
    model = request.app[SERVICE].catalog.find(request.match_info["model"], info)
    return json_response(msgspec.json.encode(_card(model)))


def served_info(request: web.Request) -> EngineInfo:
    """Of the engine. Raises EngineUnavailable while there is none."""
    handle = request.app[HANDLE]
    if handle.info is None:
        health = handle.health()
        raise EngineUnavailable(
            f"no model is served yet: {health.reason}", retry_after_s=health.retry_after_s
        )
    return handle.info


def _card(model: Model) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=model.created,
        root=model.name,
        max_model_len=model.max_model_len,
        permission=[ModelPermission(created=model.created)],
    )


ROUTES = [
    Route(
        "GET",
        "/v1/models",
        list_models,
        Operation(
            id="list_models",
            summary="The models served",
            tag="models",
            response=ModelList,
            statuses=(503,),
        ),
    ),
    Route(
        "GET",
        "/v1/models/{model:.+}",
        get_model,
        Operation(
            id="get_model",
            summary="One model",
            tag="models",
            response=ModelCard,
            statuses=(404, 503),
        ),
    ),
]
