from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import ModelNotFound
from lmserve.service.catalog import Catalog, model_name
from lmserve.settings import EngineSettings, ServerSettings, Settings


def name(engine: FakeEngine, path: str, **asked: str) -> str:
    assert engine.info is not None
    info = msgspec.structs.replace(engine.info, model_path=path)
    return model_name(Settings(engine=EngineSettings(**asked)), info)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/cache/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("/m/qwen2.5-0.5b-instruct-q4_k_m.gguf", "qwen2.5-0.5b-instruct"),
        ("/m/Model-BF16.gguf", "Model"),
        ("/m/plain.gguf", "plain"),
        ("/m/Qwen2.5-0.5B/", "Qwen2.5-0.5B"),
        ("/", "default"),
    ],
)
async def test_a_name_from_the_path(engine: FakeEngine, path: str, expected: str) -> None:
    assert name(engine, path) == expected


async def test_a_hub_id_is_the_name(engine: FakeEngine, tmp_path: Path) -> None:
    assert name(engine, "/cache/snapshots/0a1b", model="Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert name(engine, str(tmp_path), model=str(tmp_path)) == tmp_path.name


async def test_find(engine: FakeEngine) -> None:
    catalog = Catalog(Settings(server=ServerSettings(model_name="mine")))
    assert engine.info is not None
    assert catalog.models(None) == []
    assert catalog.find(None, engine.info) == catalog.find("mine", engine.info)
    for other in ("other", "", "MINE", "mine\n", "x" * 10_000):
        with pytest.raises(ModelNotFound, match="'mine'") as caught:
            catalog.find(other, engine.info)
        assert caught.value.status == 404
        assert caught.value.param == "model"
        assert len(caught.value.message) < 400
