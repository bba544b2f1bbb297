"""What a comparison notes as it goes, a JSON line each, so that a run cut short is not lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lmserve.bench.machine import Load
from lmserve.bench.summary import Figures
from lmserve.bench.workload import Workload
from lmserve.errors import SetupError


class Begun(msgspec.Struct, tag="begun", tag_field="record"):
    machine: dict[str, Any]
    servers: dict[str, str]  # by name: the command or URL
    seed: str


class Measured(msgspec.Struct, tag="run", tag_field="record"):
    server: str
    round: int
    workload: Workload
    attempt: int  # over 0: other work disturbed the ones before
    load: Load
    client_cores: float  # of the load client, in `load.own_cores`
    figures: Figures


class Lived(msgspec.Struct, tag="server", tag_field="record"):
    """One life of a server, or one round of a server that lives on."""

    server: str
    round: int
    start_s: float | None = None  # from the command to the first answer
    start_load: Load | None = None
    pss_mib: float | None = None  # of its processes, after the runs
    error: str = ""


Record = Begun | Measured | Lived
_decode = msgspec.json.Decoder(Record).decode


class Records:
    """Of one comparison, or of several that are read from their files."""

    def __init__(self) -> None:
        self._lived: list[Lived] = []
        self._measured: dict[tuple[str, str, int], Measured] = {}
        self._servers: list[str] = []
        self._first_round = 0  # of the comparison being added
        self._next_round = 0

    def add(self, record: Record) -> None:
        match record:
            case Begun():
                self._first_round = self._next_round
                self._servers += [name for name in record.servers if name not in self._servers]
            case Lived():
                self._lived.append(msgspec.structs.replace(record, round=self._round(record)))
            case Measured():
                number = self._round(record)
                key = (record.server, record.workload.name, number)
                known = self._measured.get(key)
                # chosen by the load, never by the result
                if known is None or record.load.disturbance < known.load.disturbance:
                    self._measured[key] = msgspec.structs.replace(record, round=number)

    def _round(self, record: Lived | Measured) -> int:
        number = self._first_round + record.round
        self._next_round = max(self._next_round, number + 1)
        return number

    @property
    def servers(self) -> Sequence[str]:
        return self._servers

    @property
    def workloads(self) -> list[Workload]:
        return list({run.workload.name: run.workload for run in self._measured.values()}.values())

    def runs(self, server: str, workload: str) -> dict[int, Measured]:
        """By round; of several attempts the least disturbed."""
        return {
            number: run
            for (name, work, number), run in sorted(self._measured.items())
            if (name, work) == (server, workload)
        }

    def lives(self, server: str) -> list[Lived]:
        return [life for life in self._lived if life.server == server]

    @property
    def failed(self) -> list[Lived]:
        return [life for life in self._lived if life.error]


def read(paths: Iterable[str]) -> Records:
    records = Records()
    for path in paths:
        for record in _records_in(Path(path)):
            records.add(record)
    return records


def _records_in(path: Path) -> Iterator[Record]:
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last is a line cut short
    for number, line in enumerate(lines, 1):
        try:
            yield _decode(line)
        except msgspec.DecodeError as error:
            raise SetupError(f"{path}, line {number}: {error}") from None


def write(path: str, record: Record) -> None:
    with Path(path).open("ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")
