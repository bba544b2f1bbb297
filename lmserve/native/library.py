"""The native kernels as ctypes sees them: `src/api.h`, written again, and a library's threads.

A library is built from the same sources for AVX2, for AVX-512 and for AMX, and lies beside this
file where a compiler was there when lmserve was installed.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from lmserve.errors import SettingsError

ABI = 2  # LMS_ABI in api.h
DIRECTORY = Path(__file__).parent
FORMS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
INT4, INT8 = 3, 4
GROUP_SIZE = 32  # values of an output that share a scale
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}


class Unusable(Exception):
    """A library that is not there, or not of this version. The message is for people."""


class Weight(ctypes.Structure):
    _fields_ = [
        ("form", c_int32),
        ("num_out", c_int32),
        ("num_in", c_int32),
        ("reserved", c_int32),
        ("data", c_void_p),
        ("bias", c_void_p),
    ]


class CacheForm(ctypes.Structure):
    """lms_cache_shape"""

    _fields_ = [
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("kv_form", c_int32),
        ("reserved", c_int32),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("num_rows", c_int32),
        ("num_tokens", c_int32),
        ("table_width", c_int32),
        ("reserved", c_int32),
        ("starts", c_void_p),
        ("lens", c_void_p),
        ("tables", c_void_p),
    ]


class Options(ctypes.Structure):
    """lms_attention_options"""

    _fields_ = [
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int32),
        ("reserved", c_int32),
    ]


class Layer(ctypes.Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("qk_norm", c_void_p),
        ("out_norm", c_void_p),
        ("down_norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("q", Weight),
        ("k", Weight),
        ("v", Weight),
        ("out", Weight),
        ("gate", Weight),
        ("up", Weight),
        ("down", Weight),
        ("attention", Options),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class Decoder(ctypes.Structure):
    _fields_ = [
        ("cache", CacheForm),
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("activation", c_int32),
        ("norm_eps", c_float),
        ("embed_scale", c_float),
        ("final_softcap", c_float),
        ("reserved", c_int32),
        ("norm", c_void_p),
        ("embedding", Weight),
        ("head", Weight),
        ("layers", POINTER(Layer)),
    ]


class Drawing(ctypes.Structure):
    _fields_ = [
        ("top_p", c_double),
        ("min_p", c_double),
        ("uniform", c_double),
        ("temperature", c_float),
        ("top_k", c_int32),
    ]


_DECODER, _BATCH, _CACHE, _WEIGHT = map(POINTER, (Decoder, Batch, CacheForm, Weight))
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {  # result, arguments
    "lms_lanes": (c_int32, []),
    "lms_allowed": (c_int32, []),
    "lms_pool_new": (c_void_p, [c_int32]),
    "lms_pool_free": (None, [c_void_p]),
    "lms_packed_bytes": (c_int64, [c_int32] * 3),
    "lms_pack_dense": (None, [c_int32] * 3 + [c_void_p] * 2),
    "lms_pack_int4": (None, [c_int32] * 2 + [c_void_p] * 4),
    "lms_pack_int8": (None, [c_int32] * 2 + [c_void_p] * 3),
    "lms_rows": (None, [_WEIGHT, c_void_p, c_int64, c_void_p]),
    "lms_linear": (None, [c_void_p, _WEIGHT, c_void_p, c_int64, c_void_p]),
    "lms_write_kv": (None, [c_void_p, _CACHE, _BATCH] + [c_void_p] * 4),
    "lms_attend": (None, [c_void_p, _CACHE, _BATCH, POINTER(Options)] + [c_void_p] * 4),
    "lms_forward": (None, [c_void_p, _DECODER, _BATCH] + [c_void_p] * 3),
    "lms_normed": (None, [c_void_p, _DECODER, c_void_p, c_int64, c_void_p]),
    "lms_logits": (None, [c_void_p, _DECODER, c_void_p, c_int64, c_void_p]),
    "lms_choose": (None, [c_void_p] * 2 + [c_int64] * 2 + [c_void_p] * 2),
    "lms_draw": (None, [c_void_p] * 2 + [c_int64] * 2 + [POINTER(Drawing), c_void_p]),
}


def load(name: str, directory: Path = DIRECTORY) -> ctypes.CDLL:
    """The library built for these instructions. Raises Unusable."""
    found = [path for end in EXTENSION_SUFFIXES if (path := directory / f"_{name}{end}").is_file()]
    if not found:
        raise Unusable("it was not built: install a C++ compiler, then lmserve again")
    try:
        library = ctypes.CDLL(str(found[0]))
        if library.lms_abi() != ABI:
            raise Unusable("it was built from older sources; install lmserve again")
        for function, (result, arguments) in _SIGNATURES.items():
            each = getattr(library, function)
            each.restype, each.argtypes = result, arguments
        if not library.lms_allowed():
            raise Unusable("the system does not let this process use the instructions")
    except (OSError, AttributeError) as error:
        raise Unusable(f"it cannot be loaded: {' '.join(str(error).split())}") from error
    return library


class Kernels:
    """A library and the threads it runs on, which end with this object.

    `library.lms_…` are its functions; those that compute take `pool` first, one call at a time.
    """

    def __init__(self, name: str, library: ctypes.CDLL, num_threads: int):
        self.name = name
        self.library: Any = library
        self.num_threads = num_threads
        self.pool: int = self.library.lms_pool_new(num_threads)
        if not self.pool:
            raise SettingsError(f"--threads {num_threads}: the system starts fewer; ask for less")
        self._free = weakref.finalize(self, self.library.lms_pool_free, self.pool)

    def close(self) -> None:
        """Ends the threads now, not when this object goes; may be called again."""
        self._free()


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a contiguous tensor's values are."""
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()
