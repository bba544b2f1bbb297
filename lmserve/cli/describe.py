"""The settings, written down: docs/configuration.md's table and config/default.toml.

`scripts/write_settings_docs.py` writes both; a test holds the files to this.
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

from lmserve.cli.lmdeploy_flags import FLAGS
from lmserve.fields import SECTIONS, SettingField, catalogue

TOML_HEADER = """\
# Every setting with its default. A settings file needs only what it changes:
#     lmserve serve api_server --config my.toml      (or LMSERVE_CONFIG=my.toml)
# Lines commented out have no fixed default. Environment and flags go over the file.
"""


def markdown_table() -> str:
    """A table a section."""
    return "\n".join(_section_table(section) for section in SECTIONS)


def _section_table(section: str) -> str:
    lines = [
        f"### `[{section}]`\n",
        "| key | flag | environment | default | what | accepts |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    fields = [field for field in catalogue().values() if field.section == section]
    return "\n".join([*lines, *map(_row, fields)]) + "\n"


def _row(field: SettingField) -> str:
    flag = "`MODEL`" if field.name == "model" else f"`{field.flag}`"
    default = "" if field.default is None else f"`{_toml(field.default)}`"
    cells = [f"`{field.name}`", flag, f"`{field.env}`", default, field.doc, field.accepts]
    return f"| {' | '.join(cells)} |"


def lmdeploy_table() -> str:
    """LMDeploy's flags that are no setting."""
    rows = [f"| `{flag.name}` | {flag.help} |" for flag in FLAGS]
    return "\n".join(["| flag | here |", "| --- | --- |", *rows]) + "\n"


def default_toml() -> str:
    parts = [TOML_HEADER]
    for section in SECTIONS:
        parts.append(f"\n[{section}]\n")
        fields = [field for field in catalogue().values() if field.section == section]
        parts.extend(_toml_entry(field) for field in fields)
    return "".join(parts)


def _toml_entry(field: SettingField) -> str:
    doc = textwrap.fill(f"{field.doc} ({field.accepts})", 88)
    comment = textwrap.indent(doc, "# ")
    if field.default is None:
        return f"{comment}\n#{field.name} =\n"
    return f"{comment}\n{field.name} = {_toml(field.default)}\n"


def _toml(value: Any) -> str:
    return json.dumps(value)  # for text, numbers and booleans TOML's spelling is JSON's
