"""What is written about the settings is what the settings are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmserve.cli.config import load
from lmserve.cli.describe import default_toml, lmdeploy_table, markdown_table
from lmserve.settings import Settings
from lmserve.text.named_templates import NAMED

ROOT = Path(__file__).resolve().parents[2]
REWRITE = "run: python scripts/write_settings_docs.py"


def test_the_configuration_page_has_the_tables():
    assert markdown_table() in (ROOT / "docs" / "configuration.md").read_text(), REWRITE


def test_the_page_for_lmdeploys_users_has_the_flags_and_templates():
    page = (ROOT / "docs" / "lmdeploy.md").read_text()
    assert lmdeploy_table() in page, REWRITE
    assert {name for name in NAMED if f"`{name}`" not in page} == set()


def test_the_default_file_is_written_from_the_settings():
    assert (ROOT / "config" / "default.toml").read_text() == default_toml(), REWRITE


def test_the_default_file_changes_nothing():
    loaded = load(config=str(ROOT / "config" / "default.toml"), environ={})
    assert loaded.settings == Settings()


@pytest.mark.parametrize("name", ["development", "production"])
def test_the_example_files_load(name: str):
    loaded = load(config=str(ROOT / "config" / f"{name}.toml"), environ={})
    assert loaded.settings != Settings()
