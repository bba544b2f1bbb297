"""The engine in the calling thread: no process, no event loop."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path
from time import perf_counter
from typing import Any

from lmserve.engine.core import EngineCore
from lmserve.engine.cores import share_the_cores
from lmserve.errors import EngineDied, EngineUnavailable, SettingsError
from lmserve.fields import WrongValue, catalogue, closest
from lmserve.messages import Abort, EngineInfo, Submit, pack_ids
from lmserve.offline.answers import Growing
from lmserve.offline.interrupts import Interrupts
from lmserve.settings import EngineSettings
from lmserve.weights.files import cache_dir, resolve

log = logging.getLogger(__name__)

# settings of an engine that another process watches
ELSEWHERE = frozenset({"engine", "stuck_after_s", "kill_after_s", "restart", "mock_tokens_s"})


def engine_settings(model: str | Path | None, given: dict[str, Any]) -> EngineSettings:
    """Checked as those of the command line are. Raises SettingsError."""
    known = {
        name: field
        for name, field in catalogue().items()
        if field.section == "engine" and name not in {"model", *ELSEWHERE}
    }
    for name, value in given.items():
        if name not in known:
            raise SettingsError(f"LLM has no setting {name}{closest(name, known)}")
        if value is not None or known[name].default is not None:
            try:
                given[name] = known[name].check(value)
            except WrongValue as error:
                raise SettingsError(f"{name} {error}") from None
    return EngineSettings(model=None if model is None else str(model), **given)


class Engine:
    """Loads at once. After a step that failed as a whole it is closed."""

    def __init__(self, settings: EngineSettings):
        if settings.engine == "mock":
            raise SettingsError("engine is mock, which has no model to run here: leave it out")
        cache = cache_dir(settings.cache_dir)
        found = resolve(settings.model, cache, settings.revision, settings.load_format)
        self.settings = dataclasses.replace(settings, model=str(found.path))
        share_the_cores()
        core = EngineCore(self.settings)
        self._core: EngineCore | None = core
        try:
            self.info: EngineInfo = core.load(lambda stage: log.info("%s", stage))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        core, self._core = self._core, None
        if core is not None:
            core.close()

    def run(self, asked: Collection[Growing]) -> None:
        """Until each of these has ended, or one failed, whose error is raised. Ctrl-C ends them
        all, after the step it comes in."""
        core = self._core
        if core is None:
            raise EngineUnavailable("this LLM is closed: make another")
        left = {each.rid: each for each in asked}
        began_s = perf_counter()
        with Interrupts() as interrupts:
            try:
                core.handle([_submit(each) for each in asked])
                while left:
                    self._step(core, left, began_s)
                    interrupts.check()
            finally:
                if left and self._core is not None:
                    core.handle([Abort(list(left))])

    def _step(self, core: EngineCore, left: dict[int, Growing], began_s: float) -> None:
        try:
            if core.has_chores():
                core.do_chores()
            outputs = core.step().outputs
        except Exception as error:
            log.exception("the engine failed outside any one request and is closed")
            self.close()
            raise EngineDied(f"the engine failed and is closed: {error}") from error
        passed_s = perf_counter() - began_s
        for output in outputs:
            growing = left[output.rid]
            growing.take(output, passed_s)
            if growing.ended:
                del left[output.rid]
                if output.finish is None:  # it met a stop string, which the engine knows nothing of
                    core.handle([Abort([output.rid])])
                if growing.error is not None:
                    raise growing.error


def _submit(growing: Growing) -> Submit:
    return Submit(growing.rid, pack_ids(growing.prompt_token_ids), growing.sampling)
