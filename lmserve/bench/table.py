"""Rows of text and numbers for the terminal, which Markdown reads as a table too."""

from __future__ import annotations

from collections.abc import Sequence

Cell = str | int | float | None


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Columns with numbers stand to the right, others to the left. No newline at the end."""
    texts = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *texts, strict=True)]
    right = [
        any(isinstance(cell, int | float) for cell in column)
        for column in (zip(*rows, strict=True) if rows else ([""] for _ in headers))
    ]
    rule = [
        "-" * (width - 1) + ":" if is_right else "-" * width
        for width, is_right in zip(widths, right, strict=True)
    ]
    return "\n".join(_line(row, widths, right) for row in (headers, rule, *texts))


def shown(cell: Cell) -> str:
    """Four digits that count, where there are so many; whole numbers as they are."""
    if cell is None:
        return "-"
    if not isinstance(cell, float):
        return str(cell)
    size = abs(cell)
    return f"{cell:.{0 if size >= 1000 else 1 if size >= 100 else 2}f}"


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(cells, widths, right, strict=True)
    ]
    return f"| {' | '.join(padded)} |"
