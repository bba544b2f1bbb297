"""Saves and restores: KV between the cache and files, beside the steps.

The engine's thread moves a bounded piece a turn between cache and memory; files are written,
read and verified by one helper thread. Each job is a generator that yields what it waits for,
so that at every moment one place says what it holds and gives back. One job runs at a time; a
restore goes before the saves that wait, for somebody waits for it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from lmserve.engine.cache.loans import Loan
from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.kv_file import Header, KVReader, KVWriter
from lmserve.errors import EngineError, LmserveError
from lmserve.messages import ControlReply, unpack_ids

logger = logging.getLogger(__name__)

PIECE_BYTES = 16 * 2**20  # moved in a turn: a few milliseconds

Job = Generator[Future[Any], Any, dict[str, int]]


class PagedKV(Protocol):
    """What a runner offers of its KV cache. The bytes are those of tokens, one after another."""

    block_size: int
    kv_token_bytes: int

    def kv_fingerprint(self) -> str:
        """Called by the helper thread. Raises ModelError where there is none."""

    def read_kv(self, blocks: list[int], num_tokens: int) -> memoryview: ...

    def write_kv(self, blocks: list[int], num_tokens: int, data: bytearray) -> None:
        """Into whole blocks: what `data` leaves of the last one becomes zeros."""


class KVStore:
    def __init__(
        self,
        runner: PagedKV,
        cache: CacheManager,
        *,
        num_spare: Callable[[], int],
        wake: Callable[[], None],
    ):
        """`num_spare` blocks are left to those that run. `wake` is called, from any thread,
        when there are chores again."""
        self._runner = runner
        self._cache = cache
        self._num_spare = num_spare
        self._wake = wake
        self._piece_blocks = max(1, PIECE_BYTES // (runner.kv_token_bytes * runner.block_size))
        self._fingerprint: str | None = None  # of the first job on
        self._saves: deque[tuple[int, Job]] = deque()
        self._restores: deque[tuple[int, Job]] = deque()
        self._current: tuple[int, Job] | None = None
        self._awaited: Future[Any] | None = None  # by the current job
        self.executor: Executor | None = None  # one thread, made for the first job

    def save(self, id: int, token_ids: bytes, path: str, namespace: int = 0) -> None:
        """Queues a save; `id` is its control's."""
        self._saves.append((id, self._save(unpack_ids(token_ids), Path(path), namespace)))

    def restore(self, id: int, token_ids: bytes, path: str, namespace: int = 0) -> None:
        self._restores.append((id, self._restore(unpack_ids(token_ids), Path(path), namespace)))

    @property
    def has_jobs(self) -> bool:
        return bool(self._current or self._restores or self._saves)

    def has_chores(self) -> bool:
        """Whether `do_chores` would do something now."""
        return self.has_jobs and (self._awaited is None or self._awaited.done())

    def do_chores(self) -> list[ControlReply]:
        """One bounded piece of the current job; its reply where that was the last."""
        if not self.has_chores():
            return []
        if self._current is None:
            self._current = (self._restores or self._saves).popleft()
        id, job = self._current
        try:
            self._go_on(job)
            return []
        except StopIteration as end:
            reply = ControlReply(id, end.value)
        except LmserveError as error:
            reply = ControlReply(id, error=error.message)
        except Exception as error:
            logger.warning("a save or restore failed", exc_info=True)
            reply = ControlReply(id, error=f"{type(error).__name__}: {error}")
        self._current = None
        return [reply]

    def close(self) -> None:
        """Ends all jobs, and returns when nothing of them is left."""
        self._saves.clear()
        self._restores.clear()
        if self._current is not None:
            self._current[1].close()
            self._current = self._awaited = None
        if self.executor is not None:
            self.executor.shutdown()
            self.executor = None

    # --- the two jobs ---------------------------------------------------------------------

    def _save(self, tokens: list[int], path: Path, namespace: int) -> Job:
        runner, loans = self._runner, self._cache.loans
        loan, file = loans.borrow(tokens, namespace=namespace), KVWriter(path)
        num_tokens, blocks = loan.num_tokens, loan.blocks
        try:
            if not num_tokens:
                return {"num_tokens": 0, "num_bytes": 0}
            fingerprint = yield from self._identify()
            header = Header.of(fingerprint, runner.kv_token_bytes, tokens[:num_tokens])
            yield self._start(file.open, header)
            for first in range(0, len(blocks), self._piece_blocks):
                _check_held(loan)
                piece = blocks[first : first + self._piece_blocks]
                rest = num_tokens - first * runner.block_size
                data = runner.read_kv(piece, min(len(piece) * runner.block_size, rest))
                yield self._start(file.write, data)
            _check_held(loan)
            if loans.is_suspect(loan):
                raise EngineError("a request that shares this KV failed, so it is not saved")
            loans.give_back(loan)
            num_bytes = yield self._start(file.commit)
            return {"num_tokens": num_tokens, "num_bytes": num_bytes}
        finally:
            loans.give_back(loan)
            self._end(file.discard)

    def _restore(self, tokens: list[int], path: Path, namespace: int) -> Job:
        runner, loans = self._runner, self._cache.loans
        known = loans.num_known(tokens, namespace)
        if known == len(tokens) or not self._cache.prefix_cache:
            return {"num_tokens": 0, "num_known": known}
        file = KVReader(path)
        loan: Loan | None = None
        try:
            fingerprint = yield from self._identify()
            yield self._start(file.open, fingerprint, runner.kv_token_bytes)
            usable = file.num_common(tokens)
            loan = loans.borrow(tokens[:usable], full_only=True, namespace=namespace)
            known = loans.num_known(tokens, namespace)
            if known < usable:
                yield self._start(file.skip, loan.num_tokens)
                end = yield from self._fill(loan, file, usable)
                yield self._start(file.verify)
                _check_held(loan)
                loans.enter(loan, tokens[:end], namespace)
            now_known = loans.num_known(tokens, namespace)
            return {"num_tokens": max(0, now_known - known), "num_known": now_known}
        finally:
            if loan is not None:
                loans.give_back(loan)
            self._end(file.close)

    def _fill(self, loan: Loan, file: KVReader, usable: int) -> Generator[Future[Any], Any, int]:
        """Writes what the file says of the tokens after the known ones, as far as there is room,
        into new blocks. Returns where that ends."""
        size, loans = self._runner.block_size, self._cache.loans
        at = loan.num_tokens
        ahead = self._start(file.read, min(self._piece_blocks * size, usable - at))
        while at < usable:
            num_tokens = min(self._piece_blocks * size, usable - at)
            data = yield ahead
            _check_held(loan)
            ahead = self._start(file.read, min(num_tokens, usable - at - num_tokens))
            num_blocks = self._cache.num_blocks_for(num_tokens)
            new = loans.extend(loan, num_blocks, self._num_spare())
            if len(new) < num_blocks:
                num_tokens = len(new) * size
                usable = at + num_tokens
                del data[num_tokens * self._runner.kv_token_bytes :]
            if new:
                self._runner.write_kv(new, num_tokens, data)
            at += num_tokens
        return at

    def _identify(self) -> Generator[Future[Any], Any, str]:
        """The model's fingerprint, found out by the first job."""
        if self._fingerprint is None:
            self._fingerprint = yield self._start(self._runner.kv_fingerprint)
        return self._fingerprint

    # --- the helper thread ----------------------------------------------------------------

    def _start(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        if self.executor is None:
            self.executor = ThreadPoolExecutor(1, thread_name_prefix="kv files")
        return self.executor.submit(call, *args)

    def _end(self, call: Callable[[], None]) -> None:
        """After all that was started; nobody waits for it."""
        if self.executor is not None:
            self.executor.submit(call)

    def _go_on(self, job: Job) -> None:
        awaited, self._awaited = self._awaited, None
        failure = awaited.exception() if awaited is not None else None
        if failure is not None:
            self._awaited = job.throw(failure)
        else:
            self._awaited = job.send(awaited.result() if awaited is not None else None)
        self._awaited.add_done_callback(lambda _: self._wake())


def _check_held(loan: Loan) -> None:
    if loan.called_in:
        raise EngineError("the KV cache had no room left for a save or restore beside a request")
