"""Which model: from what the user wrote to a path on this machine. No torch here: the server
process and the command line use it too."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lmserve.errors import ModelError
from lmserve.weights import default
from lmserve.weights.gguf_file import MAGIC

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
HUB_SKIPPED = ["*/*", "consolidated*"]  # other formats of the same weights
# each of these is in a directory that `lmdeploy convert` wrote, or in a folder within it
TURBOMIND = (
    *("triton_models", "model_repository", "service_docker_up.sh", "weights"),
    *("config.ini", "config.yaml", "lmdeploy.json"),
)
QUANTISATION = re.compile(r"[.-](i?q\d\w*|bf16|fp?16|fp?32)$", re.IGNORECASE)  # ends a file's name


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    path: Path  # a directory of safetensors, or a .gguf file
    name: str  # what clients call it


def cache_dir(settings_value: str | None) -> Path:
    """Where downloaded models and converted tokenizers are kept."""
    if settings_value:
        return Path(settings_value).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lmserve"


def resolve(
    model: str | None, cache: Path, revision: str | None = None, load_format: str = "auto"
) -> ResolvedModel:
    """Finds the model, fetching it where needed: all of it, or for the load format "dummy" all but
    its weights. Raises ModelError: one line with the remedy."""
    if revision is not None and not (model and _is_hub_id(model)):
        raise ModelError(f"--revision is for a hub id (org/name), not for {model or 'the default'}")
    if not model:
        return ResolvedModel(default.fetch(cache), default.NAME)
    path = Path(model).expanduser()
    try:
        if path.is_dir():
            check_directory(path, str(path), load_format)
            return ResolvedModel(path, path.resolve().name)
        if path.exists():
            if not path.is_file():  # a pipe would never end
                raise ModelError(f"{model} is neither a directory nor a file; give a .gguf file")
            check_gguf(path)
            return ResolvedModel(path, QUANTISATION.sub("", path.stem))
    except OSError as error:
        raise ModelError(f"cannot read {model}: {error.strerror or error}") from error
    if _is_hub_id(model):
        return ResolvedModel(fetch_from_hub(model, revision, load_format), model)
    raise ModelError(
        f"no such model: {model}; give a directory of safetensors, a .gguf file, "
        "a hub id (org/name), or nothing for the built-in model"
    )


def _is_hub_id(model: str) -> bool:
    path = Path(model).expanduser()
    return bool(HUB_ID.fullmatch(model)) and path.suffix != ".gguf" and not path.exists()


def check_directory(path: Path, label: str, load_format: str = "auto") -> None:
    """The directory holds a model we can open; `label` is what the user knows it by."""
    if not (path / "config.json").is_file():
        if any((path / name).exists() for name in TURBOMIND):
            raise ModelError(
                f"{label} is a TurboMind workspace; give the original model directory instead"
            )
        raise ModelError(
            f"{label} has no config.json; give the directory that holds config.json and "
            "the .safetensors files"
        )
    if load_format != "dummy" and not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{label} has no .safetensors files; give a model saved as safetensors or GGUF"
        )


def check_gguf(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic == MAGIC:
        return
    if path.suffix == ".gguf":
        raise ModelError(f"{path} is not a GGUF file, though named so; download it again")
    if path.suffix in (".safetensors", ".json"):
        raise ModelError(f"{path} is one file of a model; give its directory, {path.parent}")
    raise ModelError(f"{path} is not a model; give a .gguf file or a directory of safetensors")


def fetch_from_hub(model: str, revision: str | None = None, load_format: str = "auto") -> Path:
    """The hub's own cache is used, so a second start needs no network."""
    from huggingface_hub import errors, snapshot_download

    try:
        path = Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=HUB_FILES,
                ignore_patterns=HUB_SKIPPED + (["*.safetensors"] if load_format == "dummy" else []),
            )
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{model} asks for a licence to be accepted; accept it on the hub and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"no model {model} here or on the hub; check the name, or set HF_TOKEN if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision} on the hub") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"cannot fetch {model}: the hub cannot be reached and no copy is here; "
            "check the network, or give a local directory or .gguf file"
        ) from error
    except Exception as error:  # whatever the hub's client lets through ends this command
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"cannot fetch {model}: {reason}; check network and disk space, or give a local path"
        ) from error
    check_directory(path, model, load_format)
    return path
