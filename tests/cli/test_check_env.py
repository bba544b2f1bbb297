from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import lmserve
from lmserve.cli import check_env
from lmserve.cli.main import cli


def test_as_a_person_reads_it():
    result = CliRunner().invoke(cli, ["check_env"])
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert lines["lmserve"] == lmserve.__version__
    assert {"Python", "torch", "aiohttp", "CUDA", "GPUs", "memory", "models"} <= set(lines)
    assert lines["kernels"].partition(" ")[0] in ("amx", "avx512", "avx2", "torch")


@pytest.mark.parametrize("environ", [{"LMSERVE_DTYP": "x"}, {"LMSERVE_CONFIG": "absent.toml"}])
def test_it_never_fails(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check_env, "TORCH_PROBE", "raise OSError('libcuda.so is broken')")
    result = CliRunner().invoke(cli, ["check_env", "--json"], env=environ)
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["torch"].count(".") >= 1
    assert facts["directories"].startswith("unknown (SettingsError: ")
    assert "CPU" in facts


def test_torch_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check_env, "TORCH_PROBE", "raise OSError('libcuda.so is broken')")
    facts = json.loads(CliRunner().invoke(cli, ["check_env", "--json"]).stdout)
    assert facts["torch at work"] == "unknown (RuntimeError: OSError: libcuda.so is broken)"


def test_this_process_does_not_import_torch():
    code = (
        "import sys\nfrom lmserve.cli.main import cli\n"
        "cli(['check_env', '--json'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
