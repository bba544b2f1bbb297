"""From what the user wrote to a model on disk, or to one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmserve.errors import ModelError
from lmserve.weights import files
from lmserve.weights.files import ResolvedModel, cache_dir, resolve


def refusal(model: str, tmp_path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(model, tmp_path / "cache")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir(None) == tmp_path / ".cache" / "lmserve"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir(None) == Path("/xdg/lmserve")
    monkeypatch.setenv("LMSERVE_CACHE_DIR", "/own")  # a setting's, which is given
    assert cache_dir(None) == Path("/xdg/lmserve")
    assert cache_dir("~/given") == tmp_path / "given"


def test_a_directory_and_a_file(
    write_directory: Callable[..., Path], write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    directory, file = write_directory(), write_gguf()
    assert resolve(str(directory), tmp_path) == ResolvedModel(directory, "tiny")
    assert resolve(f"{directory}/", tmp_path).name == "tiny"
    assert resolve(str(file), tmp_path) == ResolvedModel(file, "tiny")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "qwen2.5-0.5b-instruct"),
        ("Model-BF16.gguf", "Model"),
        ("Model.IQ3_XXS.gguf", "Model"),
        ("model-fp16.gguf", "model"),
        ("Qwen3-0.6B.gguf", "Qwen3-0.6B"),
        ("Q4_0.gguf", "Q4_0"),
    ],
)
def test_a_file_is_named_without_its_quantisation(
    write_gguf: Callable[..., Path], tmp_path: Path, file: str, name: str
) -> None:
    path = write_gguf().rename(tmp_path / file)
    assert resolve(str(path), tmp_path) == ResolvedModel(path, name)


def test_directories_that_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.mkdir()
    assert "has no config.json" in refusal(str(path), tmp_path)
    (path / "config.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"x")
    assert "no .safetensors files" in refusal(str(path), tmp_path)


@pytest.mark.parametrize("given", ["", "triton_models", "triton_models/weights"])
def test_a_turbomind_workspace(tmp_path: Path, given: str) -> None:
    workspace = tmp_path / "workspace"
    for folder in ("triton_models/weights", "triton_models/tokenizer", "model_repository"):
        (workspace / folder).mkdir(parents=True)
    (workspace / "service_docker_up.sh").touch()
    (workspace / "triton_models/weights/config.ini").touch()
    message = refusal(str(workspace / given), tmp_path)
    assert "TurboMind workspace; give the original model directory" in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.gguf", b"\x00" * 100, "not a GGUF file, though named so; download it again"),
        ("m.gguf", b"", "not a GGUF file"),
        ("model.safetensors", b"\x00" * 100, "is one file of a model; give its directory"),
        ("notes.txt", b"hello", "is not a model; give a .gguf file"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(str(tmp_path / name), tmp_path)


@pytest.mark.parametrize("name", ["nothing-here", "./a/b", "models/m.gguf", "/no/such", "a/b/c"])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    message = refusal(name, tmp_path)
    assert message.startswith(f"no such model: {name}; give a directory")


def test_a_hub_id_without_a_network(tmp_path: Path) -> None:
    """The real client, told that it is offline, in a process of its own: it reads that once."""
    code = (
        "from pathlib import Path\n"
        "from lmserve.errors import ModelError\n"
        "from lmserve.weights.files import resolve\n"
        "try:\n    resolve('nobody/nothing', Path('.'))\n"
        "except ModelError as error:\n    import sys; sys.stdout.write(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("cannot fetch nobody/nothing: the hub cannot be reached")
    assert "\n" not in done.stdout


def test_a_revision_is_for_hub_ids(write_directory: Callable[..., Path], tmp_path: Path) -> None:
    for model in (str(write_directory()), None):
        with pytest.raises(ModelError, match=r"--revision is for a hub id \(org/name\), not for "):
            resolve(model, tmp_path, "v1")


def test_a_revision_reaches_the_hub(
    write_directory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, asked = write_directory(), []

    def snapshot(model: str, *, revision: str | None, **_: object) -> str:
        asked.append((model, revision))
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    resolve("org/name", tmp_path, "refs/pr/1")
    assert asked == [("org/name", "refs/pr/1")]


def test_a_hub_id_that_is_here(
    write_directory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_directory()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(directory))
    assert resolve("org/name", tmp_path) == ResolvedModel(directory, "org/name")
    assert resolve("org/name", tmp_path, "v1") == ResolvedModel(directory, "org/name")
    (directory / "model.safetensors").unlink()
    assert refusal("org/name", tmp_path).startswith("org/name has no .safetensors files")


def test_a_dummy_needs_no_weights(
    write_directory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, skipped = write_directory(), []

    def snapshot(model: str, *, ignore_patterns: list[str], **_: object) -> str:
        skipped.append("*.safetensors" in ignore_patterns)
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    resolve("org/name", tmp_path)
    (directory / "model.safetensors").unlink()
    assert resolve("org/name", tmp_path, None, "dummy").path == directory
    assert resolve(str(directory), tmp_path, None, "dummy").path == directory
    assert skipped == [False, True]
    (directory / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve(str(directory), tmp_path, None, "dummy")


def test_no_torch_in_this_module() -> None:
    code = (
        "import sys, lmserve.weights.files\n"
        "heavy = {'torch', 'transformers', 'gguf', 'numpy', 'huggingface_hub'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_default_is_asked_of_its_own_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.default, "fetch", lambda cache: cache / "x.gguf")
    assert resolve(None, tmp_path) == ResolvedModel(tmp_path / "x.gguf", "SmolLM2-135M-Instruct")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelError, match="neither a directory nor a file"):
        files.resolve(str(tmp_path / "pipe.gguf"), tmp_path)
