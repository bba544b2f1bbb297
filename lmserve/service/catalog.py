"""The models served: one for now, under one name."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

from lmserve.errors import ModelNotFound
from lmserve.messages import EngineInfo
from lmserve.settings import Settings

_QUANTISATION = re.compile(r"[.-](?:i?q\d\w*|b?f16|f32)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    created: int  # unix seconds
    max_model_len: int


class Catalog:
    def __init__(self, settings: Settings):
        self._settings = settings
        self._created = int(time.time())

    def models(self, info: EngineInfo | None) -> list[Model]:
        """What clients may name; empty while the engine loads."""
        if info is None:
            return []
        return [Model(model_name(self._settings, info), self._created, info.max_model_len)]

    def find(self, name: str | None, info: EngineInfo) -> Model:
        """The model of this name; the default one for None."""
        model = self.models(info)[0]
        if name is not None and name != model.name:
            raise ModelNotFound(
                f"the model {name[:200]!r} is not served here: use {model.name!r}, or leave "
                "model out",
                param="model",
            )
        return model


def model_name(settings: Settings, info: EngineInfo) -> str:
    """The name given, else the hub id asked for, else that of the model's file or folder."""
    if settings.server.model_name:
        return settings.server.model_name
    asked = settings.engine.model
    if asked and not os.path.isabs(asked) and not os.path.exists(asked):
        return asked
    name = os.path.basename(info.model_path.rstrip("/"))
    if name.lower().endswith(".gguf"):
        name = _QUANTISATION.sub("", name[: -len(".gguf")])
    return name or "default"
