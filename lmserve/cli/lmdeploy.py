"""`lmserve serve api_server` as LMDeploy's users type it: its flags beside the settings'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lmserve.cli.config import Loaded
from lmserve.cli.lists import ListOption
from lmserve.cli.lmdeploy_flags import FLAGS, LmdeployFlag
from lmserve.cli.options import SettingsCommand, load_options

Function = TypeVar("Function", bound=Callable[..., Any])

# its names of levels that we have no other for
LOG_LEVELS = {"critical": "error", "fatal": "error", "warn": "warning", "notset": "debug"}


class ServerCommand(SettingsCommand):
    """Its help lists LMDeploy's flags apart."""

    def title_of(self, param: click.Parameter) -> str:
        theirs = any(flag.param == param.name for flag in FLAGS)
        return "LMDeploy's flags" if theirs else super().title_of(param)


def lmdeploy_options(function: Function) -> Function:
    for flag in reversed(FLAGS):
        function = _option(flag)(function)
    return function


def _option(flag: LmdeployFlag) -> Callable[[Function], Function]:
    if flag.takes is bool:
        return click.option(flag.name, flag.param, is_flag=True, help=flag.help)
    cls = ListOption if flag.takes is tuple else click.Option
    metavar = "TEXT..." if flag.takes is tuple else "TEXT"
    return click.option(flag.name, flag.param, cls=cls, metavar=metavar, help=flag.help)


def load_server_options(options: dict[str, Any], model: str | None) -> Loaded:
    """Settings from what click parsed, LMDeploy's flags included: these win."""
    given = {flag: options.pop(flag.param) for flag in FLAGS}
    if level := options.get("log_level"):
        options["log_level"] = LOG_LEVELS.get(level.lower(), level.lower())
    loaded = load_options(dict(options), model)
    for flag, value in given.items():
        if value not in (None, False):
            options |= flag.effect(value, loaded.settings)
    return load_options(options, model)
