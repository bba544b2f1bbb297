"""What is written about the settings is what the settings are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmserve.cli.config import load
from lmserve.cli.describe import default_toml, markdown_table
from lmserve.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
REWRITE = "run: python scripts/write_settings_docs.py"


def test_the_configuration_page_has_the_tables():
    assert markdown_table() in (ROOT / "docs" / "configuration.md").read_text(), REWRITE


def test_the_default_file_is_written_from_the_settings():
    assert (ROOT / "config" / "default.toml").read_text() == default_toml(), REWRITE


def test_the_default_file_changes_nothing():
    loaded = load(config=str(ROOT / "config" / "default.toml"), environ={})
    assert loaded.settings == Settings()


@pytest.mark.parametrize("name", ["development", "production"])
def test_the_example_files_load(name: str):
    loaded = load(config=str(ROOT / "config" / f"{name}.toml"), environ={})
    assert loaded.settings != Settings()
