"""One thread: what is computed here is tiny."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
