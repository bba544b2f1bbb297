"""Kernels of other packages, which may or may not be there."""

from __future__ import annotations

from importlib import import_module


def cannot_import(name: str, hint: str) -> str | None:
    """Why this module cannot be imported, in one line; None if it can."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed ({hint})"
    except Exception as error:  # built for another torch, another card, another Python
        return f"{name} does not load: {_first_line(error)} ({hint})"
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
