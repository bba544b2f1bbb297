from __future__ import annotations

import msgspec
import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import ModelNotFound
from lmserve.service.catalog import Catalog, model_name
from lmserve.settings import ServerSettings, Settings


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/m/plain.gguf", "plain.gguf"), ("/m/Qwen2.5-0.5B/", "Qwen2.5-0.5B"), ("/", "default")],
)
async def test_a_name_from_the_path(engine: FakeEngine, path: str, expected: str) -> None:
    assert engine.info is not None
    info = msgspec.structs.replace(engine.info, model_path=path)
    assert model_name(Settings(), info) == expected
    given = Settings(server=ServerSettings(model_name="org/given"))
    assert model_name(given, info) == "org/given"


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
