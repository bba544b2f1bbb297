"""An engine in this thread whose answers obey grammars."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmserve.engine.core import EngineCore
from lmserve.messages import Abort, SequenceOutput, Submit, pack_ids, unpack_ids
from lmserve.sampling import Grammar, SamplingParams
from lmserve.settings import EngineSettings
from lmserve.text.structures.compiler import Compiler
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import Structure


@dataclass
class Answer:
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    stop_token_id: int | None = None
    error: str | None = None

    def add(self, output: SequenceOutput) -> None:
        assert self.finish is None
        self.ids += unpack_ids(output.token_ids)
        self.finish, self.error = output.finish, output.error
        self.stop_token_id = output.stop_token_id


class Structured:
    """`ask`, then `run`."""

    def __init__(self, model: Path, **settings: Any):
        chosen: dict[str, Any] = {"device": "cpu", "threads": 1} | settings
        self.core = EngineCore(EngineSettings(model=str(model), **chosen))
        info = self.core.load(lambda stage: None)
        self.info = info
        self.tokenizer = Tokenizer.from_file(info.tokenizer_file)
        self._compiler = Compiler(info.tokenizer_file, info.vocab_size, info.eos_token_ids)
        self._answers: dict[int, Answer] = {}

    def close(self) -> None:
        self.core.close()

    def grammar(self, kind: Any, value: Any = None, after: tuple[int, ...] = ()) -> Grammar:
        return Grammar(self._compiler.compile(Structure(kind, value)), after)

    def ask(self, text: str, grammar: Grammar | None = None, **sampling: Any) -> Answer:
        rid = len(self._answers)
        self._answers[rid] = answer = Answer()
        params = SamplingParams(grammar=grammar, seed=rid, **sampling)
        ids = self.tokenizer.encode(text, add_special=False)
        self.core.handle([Submit(rid, pack_ids(ids), params)])
        return answer

    def abort(self, answer: Answer) -> None:
        rid = next(rid for rid, each in self._answers.items() if each is answer)
        self.core.handle([Abort([rid])])
        answer.finish = "abort"

    def turn(self) -> None:
        """As the host does it."""
        if self.core.has_chores():
            self.core.do_chores()
        if self.core.has_work():
            for output in self.core.step().outputs:
                self._answers[output.rid].add(output)
        else:
            time.sleep(0.001)  # a matcher is being made

    def run(self, max_s: float = 50.0) -> None:
        """To the end of all answers."""
        until = time.monotonic() + max_s
        while any(answer.finish is None for answer in self._answers.values()):
            assert time.monotonic() < until, "an answer has no end"
            self.turn()

    def text(self, answer: Answer) -> str:
        ids = answer.ids
        if ids and ids[-1] == answer.stop_token_id:
            ids = ids[:-1]
        return self.tokenizer.decode(ids, skip_special=False)
