"""Writes config/default.toml and the tables of docs/configuration.md from lmserve/settings.py.

python scripts/write_settings_docs.py
"""

from __future__ import annotations

from pathlib import Path

from lmserve.cli.describe import default_toml, markdown_table

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def main() -> None:
    (ROOT / "config" / "default.toml").write_text(default_toml())
    page = ROOT / "docs" / "configuration.md"
    page.write_text(with_tables(page.read_text()))


def with_tables(page: str) -> str:
    """The page with what stands between its two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}"


if __name__ == "__main__":
    main()
