"""Writes config/default.toml and the tables of docs/configuration.md and docs/lmdeploy.md.

python scripts/write_settings_docs.py
"""

from __future__ import annotations

from pathlib import Path

from lmserve.cli.describe import default_toml, lmdeploy_table, markdown_table

ROOT = Path(__file__).resolve().parents[1]
TABLES = {
    "configuration.md": ("settings", markdown_table),
    "lmdeploy.md": ("flags", lmdeploy_table),
}


def main() -> None:
    (ROOT / "config" / "default.toml").write_text(default_toml())
    for name, (mark, table) in TABLES.items():
        page = ROOT / "docs" / name
        page.write_text(with_table(page.read_text(), mark, table()))


def with_table(page: str, mark: str, table: str) -> str:
    """The page with what stands between its two marks replaced."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


if __name__ == "__main__":
    main()
