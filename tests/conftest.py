"""What every test has: hypothesis profiles, and markers that skip with their reason."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lmserve.bridge.child import ChildEngine
from lmserve.engine.cores import share_the_cores

# No deadline: machines that run tests are shared. `HYPOTHESIS_PROFILE=thorough` looks longer.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile(
    "thorough", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Before anything imports torch, as in the engine's own process: tests share the cores too.
share_the_cores()

# Nor do engines have a process stand by, which imports torch, unless a test asks for it.
ChildEngine.STANDBY_AFTER_S = 1e6

# Without a GPU Triton interprets its kernels. Read when it is imported, which torch may do.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell starts what runs in its background deaf to SIGINT, and every child would be so too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def find_chromium() -> str | None:
    """The browser that tests marked `browser` drive."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    return None


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine cannot run, with the reason."""
    if item.get_closest_marker("browser") and find_chromium() is None:
        pytest.skip("no chromium on the PATH")
    if item.get_closest_marker("gpu") and not has_cuda():
        pytest.skip("no CUDA device")


@pytest.fixture
def chromium() -> str:
    """The path of the browser; tests that take it are marked `browser`."""
    path = find_chromium()
    assert path is not None, "mark the test: @pytest.mark.browser"
    return path


@pytest.fixture(scope="session")
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests keep what a user's data directory would hold."""
    return tmp_path_factory.mktemp("data-home")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, data_home: Path) -> None:
    """The settings of whoever runs the tests change no test, and no test their data. The model
    cache stays."""
    monkeypatch.setenv("XDG_DATA_HOME", str(data_home))
    for name in os.environ:
        if name.startswith("LMSERVE_") and name != "LMSERVE_CACHE_DIR":
            monkeypatch.delenv(name)
