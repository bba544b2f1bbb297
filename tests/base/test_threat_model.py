"""What THREAT_MODEL.md says is shown by a test is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_test_it_names_is_there():
    named = re.findall(
        r"`((?:tests|fuzz)/[\w/.]*)(?:::(\w+))?`", (ROOT / "THREAT_MODEL.md").read_text()
    )
    assert len(named) > 40
    for path, name in named:
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([\w/.-]+)\)", (ROOT / "THREAT_MODEL.md").read_text()):
        assert (ROOT / target).exists(), target
