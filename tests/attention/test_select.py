"""Which backend is chosen, for what reason, and what its probe sees."""

from __future__ import annotations

import importlib
from dataclasses import replace

import flash_stand_ins
import pytest
import torch
from flash_stand_ins import (
    install_flash_2,
    install_flash_3,
    install_flash_4,
    install_varlen,
    varlen_attn_2_11,
    varlen_attn_2_13,
)
from paged_steps import CPU

from lmserve.attention import libraries, select
from lmserve.attention.base import AttentionOptions, CacheShape
from lmserve.attention.cpu import CpuAttention
from lmserve.attention.paged_torch import PagedTorchAttention
from lmserve.attention.probe import probe
from lmserve.errors import SettingsError

SHAPE = CacheShape(2, 4, 2, 64, 0)
CUDA = torch.device("cuda")
HALF, FP8 = torch.float16, torch.float8_e4m3fn


def choose(name="auto", shape=SHAPE, dtype=torch.float32, device=CPU, **how):
    return select.select_attention(name, shape, dtype, device, False, **how)


# --- on a processor ------------------------------------------------------------------------------


def test_auto_takes_the_batched_one_and_says_why(caplog):
    caplog.set_level("INFO", logger=select.__name__)
    backend = choose()
    assert (backend.name, backend.shape.block_size) == ("cpu", 16)
    assert [record.getMessage() for record in caplog.records] == [
        "attention: cpu on cpu, blocks of 16 tokens (it passed its probe)"
    ]


def test_a_block_size_that_is_asked_for_is_taken():
    assert choose(shape=replace(SHAPE, block_size=7)).shape.block_size == 7


def test_a_model_that_writes_a_paged_cache_gets_a_paged_backend():
    assert choose(paged=True).name == "paged"
    with pytest.raises(SettingsError, match="^--attention cpu: its cache is not paged"):
        choose("cpu", paged=True)


def all_zeros(self, q, layer, options, metadata):
    return torch.zeros_like(q)


def without_window(self, q, layer, options, metadata, attend=CpuAttention.attend):
    return attend(self, q, layer, replace(options, window=None), metadata)


def blocks_in_order(self, q, layer, options, metadata, attend=CpuAttention.attend):
    metadata.table.sort(axis=1)
    return attend(self, q, layer, options, metadata)


@pytest.mark.parametrize("wrong", [all_zeros, without_window, blocks_in_order])
def test_a_backend_whose_probe_fails_is_passed_over(monkeypatch, caplog, wrong):
    caplog.set_level("INFO", logger=select.__name__)
    monkeypatch.setattr(CpuAttention, "attend", wrong)
    assert choose().name == "sdpa"
    assert "; cpu: it failed its probe: its result is wrong by " in caplog.text


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        (
            "flash",
            CPU,
            "attention 'flash' is unknown; choose auto, native, cpu, sdpa, paged, triton",
        ),
        ("native", CPU, "--attention native: it needs --kernels amx, avx512 or avx2; use auto"),
        ("native", CUDA, "--attention native does not run on cuda; use auto"),
        ("flash_attn", CPU, "--attention flash_attn does not run on cpu; use auto"),
        (
            "flash_attn_3",
            CUDA,
            "--attention flash_attn_3: flash_attn_interface is not installed .*; use auto",
        ),
        (
            "flash_attn",
            CUDA,
            "flash_attn is not installed .pip install flash-attn.; use auto",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(name, device, message):
    with pytest.raises(SettingsError, match=f"{message}.*"):
        choose(name, dtype=HALF, device=device)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (replace(SHAPE, block_size=16), HALF, "blocks of a multiple of 256 tokens, not of 16"),
        (replace(SHAPE, head_dim=20), HALF, "heads of a multiple of 8 up to 256, not of 20"),
        (SHAPE, torch.float32, "it takes bfloat16 and float16, not float32"),
        (SHAPE, FP8, "it takes bfloat16 and float16, not float8_e4m3fn"),
    ],
)
def test_what_flash_attn_does_not_take_is_refused(monkeypatch, shape, dtype, message):
    install_flash_2(monkeypatch)
    with pytest.raises(SettingsError, match=message):
        choose("flash_attn", shape, dtype, CUDA)


def test_a_library_that_does_not_load_is_told_in_one_line(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: _ZN3c10\nand more")

    monkeypatch.setattr(libraries, "import_module", broken)
    assert libraries.cannot_import("flash_attn", "reinstall it") == (
        "flash_attn does not load: undefined symbol: _ZN3c10 (reinstall it)"
    )


# --- on a device, whose libraries have stand-ins -------------------------------------------------


def no_kernel(*args, **kwargs):
    raise NotImplementedError("no such kernel")


@pytest.fixture
def device(monkeypatch):
    """The processor chooses as a device would."""
    monkeypatch.setattr(select, "ON_CPU", select.ON_DEVICE)
    install_varlen(monkeypatch, no_kernel)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def chosen(**how):
    backend = choose(dtype=how.pop("dtype", HALF), **how)
    return " ".join(filter(None, (backend.name, backend.remark))), backend.shape.block_size


def test_auto_takes_the_newest_that_is_there(monkeypatch, device):
    install_varlen(monkeypatch, varlen_attn_2_11)
    assert chosen() == ("varlen", 64)
    install_varlen(monkeypatch, varlen_attn_2_13)
    assert chosen() == ("varlen over the block table", 256)
    install_flash_2(monkeypatch)
    assert chosen() == ("flash_attn", 256)
    install_flash_4(monkeypatch)
    assert chosen() == ("flash_attn with version 4 for whole prompts", 256)
    install_flash_3(monkeypatch)
    assert chosen() == ("flash_attn_3", 128)


def test_without_any_of_them_plain_torch_runs(device):
    assert chosen() == ("paged", 16)
    assert chosen(dtype=torch.float32) == ("paged", 16)


def test_a_block_size_that_a_backend_cannot_take_passes_it_over(monkeypatch, device, caplog):
    caplog.set_level("INFO", logger=select.__name__)
    install_flash_4(monkeypatch)
    install_varlen(monkeypatch, varlen_attn_2_13)
    assert chosen(shape=replace(SHAPE, block_size=48)) == ("varlen", 48)
    assert "flash_attn: it takes blocks of a multiple of 256 tokens, not of 48" in caplog.text
    assert "it failed its probe: block size must be divisible by 256" in caplog.text


def test_a_model_that_caps_its_scores_is_not_given_to_varlen_attn(monkeypatch, device):
    install_varlen(monkeypatch, varlen_attn_2_13)
    assert chosen(options=(AttentionOptions(0.1, None, 30.0),)) == ("paged", 16)


def test_a_cache_of_float8_goes_where_it_can_be_read(monkeypatch, device):
    for install in (install_flash_3, install_flash_4):
        install(monkeypatch)
    install_varlen(monkeypatch, varlen_attn_2_13)
    assert chosen(dtype=FP8) == ("varlen", 64)


@pytest.mark.parametrize("broken", ["decode", "prefill"])
def test_a_library_that_is_wrong_is_passed_over(monkeypatch, device, broken):
    names = {"decode": "flash_attn_with_kvcache", "prefill": "flash_attn_varlen_func"}
    right = getattr(flash_stand_ins, names[broken])

    def without_causality(*args, **kwargs):
        kwargs["causal"] = False
        kwargs["cache_seqlens" if broken == "decode" else "cu_seqlens_k"].add_(
            1 if broken == "decode" else 0
        )
        return right(*args, **kwargs)

    monkeypatch.setattr(flash_stand_ins, names[broken], without_causality)
    install_flash_2(monkeypatch)
    assert chosen() == ("paged", 16)


def test_a_prefill_of_version_4_that_is_wrong_leaves_version_2(monkeypatch, device):
    monkeypatch.setattr(
        flash_stand_ins, "flash_4_varlen_func", lambda q, *rest, **kwargs: (q.clone(), None)
    )
    install_flash_4(monkeypatch)
    assert chosen() == ("flash_attn", 256)


# --- the probe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.bfloat16, FP8])
@pytest.mark.parametrize("block_size", [1, 2, 16])
def test_the_twin_passes_its_probe(dtype, block_size):
    shape = CacheShape(1, 6, 2, 16, block_size)
    options = (AttentionOptions(0.2, 100, 4.0), AttentionOptions(0.2))
    probe(PagedTorchAttention(shape, dtype, CPU), options)


class Wrong(PagedTorchAttention):
    pass


class SeesTooMuch(Wrong):
    def decode(self, q, layer, options, metadata):
        everything = torch.full_like(metadata.context_lens, metadata.max_context)
        return super().decode(q, layer, options, replace(metadata, context_lens=everything))


class SeesNoSoftcap(Wrong):
    def attend(self, q, layer, options, metadata):
        return super().attend(q, layer, replace(options, softcap=None), metadata)


class SeesNoWindow(Wrong):
    def attend(self, q, layer, options, metadata):
        return super().attend(q, layer, replace(options, window=None), metadata)


class WritesNothing(Wrong):
    def write(self, k, v, layer, metadata):
        pass


class WritesInTheSpareBlockOnly(Wrong):
    def write(self, k, v, layer, metadata):
        metadata.slots.fill_(int(metadata.slots.max()))
        super().write(k, v, layer, metadata)


class DecodesTheFirstRow(Wrong):
    def decode(self, q, layer, options, metadata):
        return super().decode(q[:1], layer, options, metadata).expand_as(q)


class IsWrongWherePromptsAreWhole(Wrong):
    def prefill(self, q, layer, options, rows):
        return torch.zeros_like(q) if rows.fresh else super().prefill(q, layer, options, rows)


class SeesNoWindowInWholePrompts(Wrong):
    def prefill(self, q, layer, options, rows):
        options = replace(options, window=None) if rows.fresh else options
        return super().prefill(q, layer, options, rows)


@pytest.mark.parametrize("kind", Wrong.__subclasses__())
def test_the_probe_sees_what_is_wrong(kind):
    backend = kind(CacheShape(1, 4, 2, 16, 16), torch.float32, CPU)
    with pytest.raises(RuntimeError, match="its result is wrong"):
        probe(backend, (AttentionOptions(0.2, 100, 4.0), AttentionOptions(0.2)))


def test_selecting_imports_no_library_that_is_not_asked_for():
    """Triton and flash-attn are imported when they are chosen."""
    sources = [
        importlib.import_module(f"lmserve.attention.{name}")
        for name in ("flash", "flash3", "flash4", "varlen", "triton_paged", "select")
    ]
    for module in sources:
        assert not {"triton", "flash_attn"} & set(vars(module))
