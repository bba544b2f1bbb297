"""A core without a model, for the child and the thread: what it says follows from the prompt."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import msgspec

from lmserve.bridge import inventions
from lmserve.engine.trace import OFF
from lmserve.errors import ModelError
from lmserve.messages import (
    Abort,
    Begun,
    Control,
    ControlReply,
    EngineInfo,
    EngineStats,
    SequenceOutput,
    StepOutput,
    Submit,
    ToEngine,
    ToServer,
    Update,
    pack_ids,
    unpack_ids,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmserve.sampling import SamplingParams
    from lmserve.settings import EngineSettings

VOCAB_SIZE = 1000
# A prompt that begins with one of these …
FAILS = 990  # … fails alone
RAISES = 991  # … makes step raise
EXITS = 992  # … ends the process in its first step
WAITS = 993  # … says nothing


class ScriptedCore:
    """The k-th token of an answer is (first prompt id + k) modulo the vocabulary.

    `settings.model` says how loading goes: "missing", "broken", "killed", or well; "starts" tells
    as its device the process id of a program that it started; a path that exists is removed at
    the first load, and its absence is a failure to load.
    """

    def __init__(self, settings: EngineSettings):
        self._settings = settings
        self._live: dict[int, tuple[Submit, int]] = {}
        self._ended: list[SequenceOutput] = []
        self._stats = EngineStats()
        self.wake = lambda: None
        self.tell: Callable[[list[ToServer]], None] = lambda messages: None
        self.trace = OFF
        self._saves: list[threading.Thread] = []
        self._saved: queue.SimpleQueue[ControlReply] = queue.SimpleQueue()

    @staticmethod
    def preload() -> None:
        os.environ["SCRIPTED_STOOD_BY"] = ", stood by"

    def load(self, progress: Callable[[str], None]) -> EngineInfo:
        progress("reading the model")
        device = "none"
        match self._settings.model:
            case "missing":
                raise ModelError("model 'missing' is not there: name one that is")
            case "broken":
                raise ValueError("bad magic\nin two lines")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "waits":
                signal.pause()
            case "starts":  # a program that keeps what it inherits
                device = str(subprocess.Popen(["sleep", "600"], close_fds=False).pid)
            case str(path) if path.startswith("/"):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    raise ModelError("the model was there only once") from None
            case _:
                pass
        return EngineInfo(
            model_path="scripted",
            architecture="scripted" + os.environ.get("SCRIPTED_STOOD_BY", ""),
            num_parameters=0,
            vocab_size=VOCAB_SIZE,
            max_model_len=8192,
            block_size=1,
            num_blocks=0,
            kv_cache_bytes=0,
            max_batch_size=self._settings.max_batch_size or 64,
            dtype="none",
            device=device,
            attention="none",
            weights=os.environ.get("GOMP_SPINCOUNT", ""),
            deterministic=True,
            pid=os.getpid(),
            tokenizer_file=os.environ.get("SCRIPTED_TOKENIZER", ""),
            chat_template=None,
            bos_token=None,
            eos_token=None,
            eos_token_ids=(),
        )

    def handle(self, messages: list[ToEngine]) -> list[ControlReply]:
        replies = []
        for message in messages:
            match message:
                case Submit():
                    self._live[message.rid] = (message, 0)
                case Update():
                    self._update(message)
                case Abort():
                    for rid in message.rids:
                        self._live.pop(rid, None)
                case Control(verb="save"):
                    self._save(message)
                case Control():
                    replies.append(self._control(message))
        return replies

    def has_chores(self) -> bool:
        return not self._saved.empty()

    def do_chores(self) -> list[ControlReply]:
        return [self._saved.get()]

    def _save(self, control: Control) -> None:
        """Answered by a thread, which may find the loop waiting."""
        answer = {"num_tokens": 0, "num_bytes": len(control.args["token_ids"])}

        def run() -> None:
            self._saved.put(ControlReply(control.id, answer))
            self.wake()

        self._saves.append(threading.Thread(target=run))
        self._saves[-1].start()

    def _update(self, update: Update) -> None:
        if update.rid not in self._live:
            return
        submit, num_said = self._live[update.rid]
        if num_said < update.sampling.max_tokens:
            submit = msgspec.structs.replace(submit, sampling=update.sampling)
            self._live[update.rid] = (submit, num_said)
        else:
            del self._live[update.rid]
            self._ended.append(SequenceOutput(update.rid, b"", finish="length"))

    def _control(self, control: Control) -> ControlReply:
        self._stats.num_running = len(self._live)
        match control.verb:
            case "stats":
                return ControlReply(control.id, msgspec.structs.asdict(self._stats))
            case "check":
                return ControlReply(control.id, {"live": len(self._live)})
            case "pin" | "unpin" | "restore":
                return self._kv(control)
            case _:
                return ControlReply(control.id, error=f"unknown control verb {control.verb!r}")

    def _kv(self, control: Control) -> ControlReply:
        args = dict(control.args)
        asked = args.pop("key", None), args.pop("path", None), args.pop("token_ids", b"")
        if args:
            return ControlReply(control.id, error=f"unexpected argument {next(iter(args))!r}")
        assert isinstance(asked[-1], bytes), "token ids travel as bytes"
        match control.verb:
            case "pin":
                value = {"num_tokens": 0, "num_blocks": 0, "pinned_blocks": 0}
            case "unpin":
                value = {"pinned_blocks": 0}
            case _:
                value = {"num_tokens": 0, "num_known": 0}
        return ControlReply(control.id, value)

    def has_work(self) -> bool:
        return bool(self._ended) or any(self._first(rid) != WAITS for rid in self._live)

    def _first(self, rid: int) -> int:
        return unpack_ids(self._live[rid][0].token_ids[:4])[0]

    def step(self) -> StepOutput:
        outputs, self._ended = self._ended, []
        speaking = [rid for rid in self._live if self._first(rid) != WAITS]
        if begun := [rid for rid in speaking if not self._live[rid][1]]:
            self.tell([Begun(begun)])
        outputs += [self._say(rid) for rid in speaking]
        self._stats.steps += 1
        self._stats.num_running = len(self._live)
        return StepOutput(outputs, self._stats)

    def _say(self, rid: int) -> SequenceOutput:
        submit, num_said = self._live[rid]
        match first := self._first(rid):
            case 990:
                del self._live[rid]
                return SequenceOutput(rid, b"", finish="error", error="out of luck")
            case 991:
                raise RuntimeError("boom")
            case 992:
                os._exit(3)
            case _:
                pass
        output = SequenceOutput(rid, b"")
        sampling = submit.sampling
        if num_said == 0:
            output.queue_s = 0.0
            _tell_of_prompt(output, unpack_ids(submit.token_ids), sampling)
        if output.finish is not None:
            del self._live[rid]
            return output
        token_id = (first + num_said) % VOCAB_SIZE
        output.token_ids = pack_ids([token_id])
        if sampling.logprobs is not None:
            output.logprobs = inventions.logprobs_of([token_id], sampling.logprobs)
        if num_said + 1 == submit.sampling.max_tokens:
            output.finish = "length"
            del self._live[rid]
        else:
            self._live[rid] = (submit, num_said + 1)
        return output

    def close(self) -> None:
        self._live.clear()
        for thread in self._saves:
            thread.join()


def _tell_of_prompt(output: SequenceOutput, prompt: list[int], sampling: SamplingParams) -> None:
    """All of it is run in one step, and is all of the answer where no token is wanted."""
    if sampling.tell_progress:
        output.num_prompt_run = len(prompt)
    if sampling.prompt_logprobs is not None:
        wanted = prompt[max(1, sampling.prompt_logprobs_start) :]
        output.prompt_logprobs = inventions.logprobs_of(wanted, sampling.prompt_logprobs)
    if sampling.pooling is not None:
        output.embedding = inventions.embedding_of(prompt, sampling.pooling)
        output.finish = "stop"
    elif sampling.max_tokens == 0:
        output.finish = "length"
