"""Lines of the log, and who may hold them up."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from lmserve import logs
from lmserve.logs import REQUEST_ID, BackgroundHandler, JsonFormatter, TextFormatter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def logger_to(fd: int, form: str = logs.JSON) -> tuple[logging.Logger, BackgroundHandler]:
    handler = BackgroundHandler(fd)
    handler.setFormatter(logs.formatter_of(form))
    logger = logging.Logger("some.where")
    logger.addHandler(handler)
    return logger, handler


def test_a_line_of_json(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(pipe[1])
    before = REQUEST_ID.set("r-1")
    try:
        logger.info("first\n%d", 7, extra={"fields": {"status": 200}})
    finally:
        REQUEST_ID.reset(before)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logger.exception("half a character: \ud800")
    handler.flush()
    first, second = os.read(pipe[0], 65536).splitlines()
    told = json.loads(first)
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "level": "info",
        "logger": "some.where",
        "message": "first\n7",
        "request_id": "r-1",
        "status": 200,
    }
    told = json.loads(second)
    assert "request_id" not in told
    assert told["error"].endswith("ZeroDivisionError")


def test_a_line_for_people(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(pipe[1], "%(levelname)s %(message)s")
    logger.warning("half a character: \ud800")
    handler.flush()
    assert os.read(pipe[0], 100) == b"WARNING half a character: \\ud800\n"


def test_a_message_is_one_line_whatever_is_named_in_it(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(pipe[1], "%(levelname)s %(message)s")
    logger.info("the model %s", "é {} %s\r\nINFO all is well\x1b[2J\x9b1m\u2028\u202e")
    try:
        raise ValueError("\x1b[31mred\x07")
    except ValueError:
        logger.exception("failed")
    handler.flush()
    line, *traceback = os.read(pipe[0], 65536).decode().splitlines()
    assert line == ("INFO the model é {} %s\\r\\nINFO all is well\\x1b[2J\\x9b1m\\u2028\\u202e")
    assert traceback[:2] == ["ERROR failed", "Traceback (most recent call last):"]
    assert traceback[-1] == "ValueError: \\x1b[31mred\\x07"


def test_nobody_waits_for_who_reads_slowly(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_LINES", 10)
    monkeypatch.setattr(logs, "FLUSH_S", 0.05)
    logger, handler = logger_to(pipe[1], "%(message)s")
    long = "x" * 70_000  # a pipe holds 64 KiB
    logger.info(long)
    handler.flush()  # gives up: the thread has that line, and waits
    for number in range(15):
        logger.info("line %d", number)
    read = threading.Thread(target=_read, args=(pipe[0], lines := []))
    read.start()
    monkeypatch.setattr(logs, "FLUSH_S", 30.0)
    handler.flush()
    logger.info("the end")
    read.join()
    assert lines[0] == long
    assert lines[1:11] == [f"line {number}" for number in range(10)]
    assert lines[11:] == ["5 lines were not logged: whoever reads them is too slow", "the end"]


def _read(fd: int, lines: list[str]) -> None:
    data = b""
    while not data.endswith(b"the end\n"):
        data += os.read(fd, 65536)
    lines += data.decode().splitlines()


def test_nobody_reads_any_more() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    logger, handler = logger_to(writer)
    logger.info("one")
    handler.flush()
    os.close(writer)
    logger.info("two")
    handler.flush()


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter("%(message)s")])
def test_an_engine_logs_as_its_server_does(formatter: logging.Formatter) -> None:
    again = logs.formatter_of(logs.form_of(formatter))
    assert type(again) is type(formatter)
    assert again._fmt == formatter._fmt
