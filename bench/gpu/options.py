"""What was asked for, the same in every process of a run. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.gpu.shapes import LARGE, SHAPES, SMALL, TINY


@dataclass(frozen=True, slots=True)
class Options:
    out: str  # the directory of the results
    models: str  # the directory of the models that are made
    device: str = "cuda"
    tiny: bool = False  # tiny models and few repetitions, to check this script itself
    shapes: tuple[str, ...] = (LARGE, SMALL)
    peer_python: str = ""  # the interpreter that has vLLM
    rounds: int = 1
    checkpoint: bool = False  # also time the start from weights on disk
    smollm: str = ""  # SmolLM2-135M, a directory or a .gguf file
    reserve: float = 0.88  # share of the card's memory that an engine may take

    def __post_init__(self) -> None:
        unknown = [name for name in self.shapes if name not in SHAPES]
        if unknown:
            raise SystemExit(f"--shapes {unknown[0]}: known are {', '.join(SHAPES)}")

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def measured(self) -> tuple[str, ...]:
        """The shapes of the table."""
        return (TINY,) if self.tiny else self.shapes

    @property
    def kernels(self) -> str:
        """What lmserve computes with."""
        return "auto" if self.cuda else "twins"

    def file(self, part: str) -> Path:
        return Path(self.out) / f"{part}.json"
