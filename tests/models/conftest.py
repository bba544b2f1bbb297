"""Helpers beside the tests are importable by name."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)  # tiny models: a second thread only waits
sys.path.insert(0, str(Path(__file__).parent))
