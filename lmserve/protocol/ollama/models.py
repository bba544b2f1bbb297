"""Ollama's `/api/tags`, `/api/ps`, `/api/show` and `/api/version`: what is served."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.messages import EngineInfo

#: Of the Ollama whose routes these are: clients ask, and refuse to work with an old one.
API_VERSION = "0.12.0"


class OllamaVersion(Struct, kw_only=True):
    version: Annotated[
        str, Meta(description="Of Ollama's routes as served here; `/version` has lmserve's own.")
    ] = API_VERSION


class OllamaDetails(Struct, kw_only=True):
    """What kind of model it is."""

    parent_model: str = ""
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(Struct, kw_only=True):
    """One model served."""

    name: Annotated[str, Meta(description="The name to send as `model`.")]
    model: str
    modified_at: Annotated[str, Meta(description="When it was loaded.")]
    size: Annotated[int, Meta(description="Not told here: 0.")] = 0
    digest: Annotated[str, Meta(description="Another one for another model; of no file.")]
    details: OllamaDetails


class OllamaTags(Struct, kw_only=True):
    """Every model served."""

    models: list[OllamaModel]


class OllamaRunning(OllamaModel, kw_only=True):
    """One model in memory: it stays."""

    expires_at: Annotated[str, Meta(description="Never.")] = "9999-12-31T23:59:59Z"
    size_vram: Annotated[int, Meta(description="Not told here: 0.")] = 0
    context_length: Annotated[int, Meta(description="Prompt and answer together, in tokens.")]


class OllamaProcesses(Struct, kw_only=True):
    """Every model in memory: those served."""

    models: list[OllamaRunning]


class OllamaShowRequest(Struct, kw_only=True):
    """The model to tell of."""

    model: Annotated[str | None, Meta(description="A `name` of `GET /api/tags`.")] = None
    name: Annotated[str | None, Meta(description="Older name of `model`, which wins.")] = None
    verbose: Annotated[bool | None, Meta(description="Accepted, not used.")] = None

    @property
    def named(self) -> str:
        named = self.name if self.model is None else self.model
        if named is None:
            raise InvalidField("model is required", param="model")
        return named


class OllamaShow(Struct, kw_only=True):
    """One model."""

    parameters: Annotated[str, Meta(description="Its own defaults, one a line.")]
    template: Annotated[str, Meta(description="Its chat template, in Jinja.")]
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: Annotated[
        list[str], Meta(description="`completion`, `embedding`, and what of `tools`, `thinking`.")
    ]
    modified_at: str


def model_of(name: str, created: int, info: EngineInfo) -> OllamaModel:
    return OllamaModel(**_card(name, created, info))


def running(name: str, created: int, info: EngineInfo) -> OllamaRunning:
    return OllamaRunning(**_card(name, created, info), context_length=info.max_model_len)


def _card(name: str, created: int, info: EngineInfo) -> dict[str, Any]:
    known = (name, info.architecture, info.num_parameters, info.weights, info.max_model_len)
    return {
        "name": name,
        "model": name,
        "modified_at": _time(created),
        "digest": sha256(repr(known).encode("utf-8", "surrogatepass")).hexdigest(),
        "details": _details(info),
    }


def show(created: int, info: EngineInfo, *, calls: bool, thinks: bool) -> OllamaShow:
    """`info`: with the template that is used; `calls`: its calls are read; `thinks`: its thinking
    is told apart."""
    defaults = sorted(info.generation_defaults.items())
    family = _family(info)
    abilities = {"completion": True, "embedding": True, "tools": calls, "thinking": thinks}
    return OllamaShow(
        parameters="\n".join(f"{name} {value:g}" for name, value in defaults),
        template=info.chat_template or "",
        details=_details(info),
        model_info={
            "general.architecture": family,
            "general.parameter_count": info.num_parameters,
            f"{family}.context_length": info.max_model_len,
            f"{family}.embedding_length": info.hidden_size,
            f"{family}.vocab_size": info.vocab_size,
        },
        capabilities=[name for name, able in abilities.items() if able],
        modified_at=_time(created),
    )


def _details(info: EngineInfo) -> OllamaDetails:
    family = _family(info)
    return OllamaDetails(
        format="gguf" if info.model_path.endswith(".gguf") else "safetensors",
        family=family,
        families=[family],
        parameter_size=_size(info.num_parameters),
        quantization_level=info.weights,
    )


def _family(info: EngineInfo) -> str:
    """LlamaForCausalLM is of the family llama."""
    return info.architecture.removesuffix("ForCausalLM").lower()


def _size(num_parameters: int) -> str:
    if num_parameters >= 10**9:
        return f"{num_parameters / 10**9:.1f}B"
    return f"{num_parameters / 10**6:.2f}M"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
