"""The models served: one for now, under one name."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from lmserve.errors import ModelNotFound
from lmserve.messages import EngineInfo
from lmserve.settings import Settings


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
    """The name given (the command line gives the model's own), else that of its file or folder."""
    return settings.server.model_name or os.path.basename(info.model_path.rstrip("/")) or "default"
