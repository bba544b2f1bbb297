"""Configurations are read in old and new spelling, and refused with one line."""

from __future__ import annotations

import pytest
import torch
from tiny import LLAMA, MemoryCheckpoint

from lmserve.errors import ModelError
from lmserve.models.config import parse_config, parse_rope
from lmserve.models.linear import Numerics
from lmserve.models.registry import build

BASE = {**LLAMA, "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}


def test_rope_in_old_and_new_spelling():
    scaling = {"type": "linear", "factor": 2.0}
    old = parse_rope({**BASE, "rope_theta": 5e5, "rope_scaling": scaling})
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert old == parse_rope({**BASE, "rope_parameters": new})
    assert (old.kind, old.factor, old.theta) == ("linear", 2.0, 5e5)


def test_windows_by_layer_type():
    kinds = ["sliding_attention", "full_attention"]
    config = parse_config({**BASE, "sliding_window": 8, "layer_types": kinds})
    assert config.windows == (8, None)
    assert parse_config({**BASE, "sliding_window": 8, "use_sliding_window": False}).windows == (
        None,
        None,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "'hidden_size'"),
        ({"num_hidden_layers": "two"}, "'num_hidden_layers'.*'two'"),
        ({"vocab_size": True}, "'vocab_size'"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"architectures": None}, "names no architecture"),
    ],
)
def test_what_is_missing_or_unknown_is_named(change, message):
    with pytest.raises(ModelError, match=message):
        parse_config({**BASE, **change})


def test_a_checkpoint_that_lacks_a_tensor_or_has_another_shape():
    numerics = Numerics(torch.float32, torch.device("cpu"), False, False)
    with pytest.raises(ModelError, match=r"lacks the tensor 'model.embed_tokens.weight'"):
        build(MemoryCheckpoint(BASE, {}), "", numerics)
    tensors = {"model.embed_tokens.weight": torch.zeros(96, 32)}
    with pytest.raises(ModelError, match=r"shape \(96, 32\), but config.json asks for \(97, 32\)"):
        build(MemoryCheckpoint(BASE, tensors), "", numerics)


def test_a_gguf_of_an_unknown_family_is_refused():
    numerics = Numerics(torch.float32, torch.device("cpu"), False, False)
    checkpoint = MemoryCheckpoint({"architectures": ["OtherForCausalLM"]}, {})
    with pytest.raises(ModelError, match="OtherForCausalLM is not supported from a GGUF"):
        build(checkpoint, "some.gguf", numerics)
