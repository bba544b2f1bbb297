"""Structures become grammars, off the loop: each once, as far as memory goes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any

import msgspec

from lmserve.errors import InvalidField
from lmserve.messages import EngineInfo
from lmserve.sampling import Grammar, SamplingParams
from lmserve.service.admission import Ticket
from lmserve.service.text_pool import TextPool
from lmserve.text.structures.compiler import Compiler
from lmserve.text.structures.schema import MAX_DEPTH, MAX_SCHEMA_CHARS, MAX_VALUES
from lmserve.types import GenerateRequest, Structure

MAX_KEPT = 512
MAX_KEPT_CHARS = 16 * 2**20
MAX_LOOKED_UP = MAX_SCHEMA_CHARS + MAX_VALUES  # in size
MAX_LOOP_CHARS = 4000  # a larger structure is looked up in the thread too


class Structures:
    """Owned by the preparer, on its loop."""

    def __init__(self, pool: TextPool) -> None:
        self._pool = pool
        self._kept = Kept()
        self._compiler: Compiler | None = None
        self._key: tuple[object, ...] = ()

    async def constrain(
        self, request: GenerateRequest, sampling: SamplingParams, info: EngineInfo, ticket: Ticket
    ) -> SamplingParams:
        """With the grammar that the request's structure asks for. Raises InvalidField."""
        structure = request.structure
        if structure is None:
            return sampling
        if request.continues:
            raise InvalidField(
                f"{structure.param} says what a whole answer has to be, and this one has begun: "
                "leave it out, or begin the answer anew",
                param=structure.param,
            )
        grammar = Grammar(await self.source(structure, info, ticket))
        return msgspec.structs.replace(sampling, grammar=grammar)

    async def source(self, structure: Structure, info: EngineInfo, ticket: Ticket) -> str:
        """The grammar of it, in llguidance's words. Raises InvalidField, and TextTooSlow."""
        compiler = self._compiler_of(info)
        if _size(structure.value, MAX_LOOP_CHARS) <= MAX_LOOP_CHARS:
            known = self._kept.get(_digest(structure))
            if known is not None:
                return _told(known, structure.param)
        return await self._pool.run(
            ticket, structure.param, self._compile, compiler, structure, None
        )

    async def check(self, source: str, param: str, info: EngineInfo, ticket: Ticket) -> str:
        """The same of a grammar that the server wrote itself."""
        compiler = self._compiler_of(info)
        structure = Structure("grammar", source, param)
        return await self._pool.run(ticket, param, self._compile, compiler, structure, source)

    def _compiler_of(self, info: EngineInfo) -> Compiler:
        key = (info.tokenizer_file, info.vocab_size, info.eos_token_ids)
        if self._compiler is None or self._key != key:
            self._compiler, self._key = Compiler(*key), key
            self._kept = Kept()
        return self._compiler

    def _compile(self, compiler: Compiler, structure: Structure, source: str | None) -> str:
        """In a thread."""
        kept = self._kept
        if _size(structure.value, MAX_LOOKED_UP) > MAX_LOOKED_UP:
            return compiler.compile(structure)  # refused for that, or for its depth
        digest = _digest(structure, own=source is not None)
        known = kept.get(digest)
        if known is None:
            try:
                if source is None:
                    known = compiler.compile(structure)
                else:
                    known = compiler.check(source, structure.param)
            except InvalidField as error:
                known = error
            kept.put(digest, known)
        return _told(known, structure.param)


class Kept:
    """What structures became, or why they cannot: the last used of them. Thread-safe."""

    def __init__(self, max_kept: int = MAX_KEPT, max_chars: int = MAX_KEPT_CHARS):
        self._entries: OrderedDict[bytes, str | InvalidField] = OrderedDict()
        self._max_kept = max_kept
        self._max_chars = max_chars
        self._num_chars = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> str | InvalidField | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: bytes, value: str | InvalidField) -> None:
        with self._lock:
            self._num_chars += len(str(value)) - len(str(self._entries.pop(key, "")))
            self._entries[key] = value
            while len(self._entries) > self._max_kept or self._num_chars > self._max_chars:
                _, gone = self._entries.popitem(last=False)
                self._num_chars -= len(str(gone))


def _told(known: str | InvalidField, param: str) -> str:
    if isinstance(known, InvalidField):
        raise InvalidField(known.message, param=param)
    return known


def _digest(structure: Structure, *, own: bool = False) -> bytes:
    text = repr((structure.kind, structure.param, structure.value, own))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _size(value: Any, enough: int) -> int:
    """About how large it is; looks no further than `enough`, nor deeper than a schema may be: what
    is deeper counts as more than enough. A loop: Python could not follow it."""
    size, stack = 0, [(value, 0)]
    while stack:
        item, depth = stack.pop()
        size += len(item) if isinstance(item, str | list | dict | tuple) else 1
        if size > enough or depth > MAX_DEPTH:
            return enough + 1
        if isinstance(item, dict):
            stack.extend((each, depth + 1) for each in (*item, *item.values()))
        elif isinstance(item, list | tuple):
            stack.extend((each, depth + 1) for each in item)
    return size
