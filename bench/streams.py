"""What measures streams: servers in processes of their own, and a client that costs little.

The client reads whatever has come every millisecond, in one thread without asyncio, so that a
server on the other core is never held up by it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEAD = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Content-Length: {length}\r\nConnection: close\r\n\r\n"
)
CHAT = "/v1/chat/completions"
EVENT = b"data: {"
LOOK_S = 0.001
MOST_S = 600.0


class Server:
    """A server process that prints its URL, and the CPU seconds it has used."""

    def __init__(self, command: list[str], core: int | None = None):
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )
        assert self.process.stdout is not None
        self.port = 0
        for line in self.process.stdout:
            if "http://127.0.0.1:" in line:
                rest = line.split("http://127.0.0.1:", 1)[1]
                self.port = int(rest[: len(rest) - len(rest.lstrip("0123456789"))])
                break
        if not self.port:
            raise SystemExit(f"{command[0]} did not print its URL")

    def cpu_s(self) -> float:
        """Of all its threads, as clock_getcpuclockid(3) finds it."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def request_body(tokens: int, path: str = CHAT) -> bytes:
    body: dict = {"ignore_eos": True, "stream": True}
    if path == "/v1/responses":
        body |= {"input": "hi", "max_output_tokens": tokens}
    else:
        body |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
    return json.dumps(body).encode()


@dataclass
class Answer:
    """One stream as it is read."""

    sock: socket.socket
    num_events: int = 0
    _tail: bytes = b""  # of what was read: an event's mark may be cut there

    def read(self) -> bool:
        """Reads what there is; False at the end."""
        data = self.sock.recv(1 << 20)
        # the tail alone is shorter than the mark, so that none counts twice
        self.num_events += (self._tail + data).count(EVENT)
        self._tail = data[1 - len(EVENT) :]
        return bool(data)


def read_all(port: int, path: str, body: bytes, num_streams: int) -> tuple[int, float]:
    """Runs so many streams at once; the events read, and the seconds."""
    request = HEAD.format(path=path, length=len(body)).encode() + body
    begin = time.perf_counter()
    answers: dict[int, Answer] = {}
    poll = select.epoll()
    for _ in range(num_streams):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(request)
        answers[sock.fileno()] = Answer(sock)
        poll.register(sock, select.EPOLLIN)
    num_events = 0
    while answers:
        for fd, _ in poll.poll(MOST_S):
            answer = answers[fd]
            if not answer.read():
                poll.unregister(fd)
                answer.sock.close()
                num_events += answers.pop(fd).num_events
        if time.perf_counter() - begin > MOST_S:
            raise SystemExit(f"{len(answers)} streams did not end in {MOST_S:.0f} s")
        time.sleep(LOOK_S)
    poll.close()
    return num_events, time.perf_counter() - begin


def transcript(port: int, path: str, body: bytes) -> list[str]:
    """One answer as it was sent: HTTP's chunks, one a write."""
    raw = b""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(HEAD.format(path=path, length=len(body)).encode() + body)
        raw = b"".join(iter(lambda: sock.recv(1 << 20), b""))
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b" 200 " not in head[:16]:
        raise SystemExit(f"{path} answered {raw.decode(errors='replace')}")
    chunks, at = [], 0
    while True:
        end = rest.index(b"\r\n", at)
        length = int(rest[at:end], 16)
        if not length:
            return chunks
        chunks.append(rest[end + 2 : end + 2 + length].decode())
        at = end + 2 + length + 2


def bare_command(transcripts: Path) -> list[str]:
    return [sys.executable, __file__, str(transcripts)]


def bare_server(transcripts: Path) -> None:
    """Serves the chunks under the path's name in the file to every POST, unchanged."""
    import asyncio

    import uvloop
    from aiohttp import web

    answers = {
        name: [chunk.encode() for chunk in chunks]
        for name, chunks in json.loads(transcripts.read_text()).items()
    }

    async def handler(request: web.Request) -> web.StreamResponse:
        chunks: Sequence[bytes] = answers[request.path[1:]]
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0)  # a stream gives way after each token, as a real one does
        await response.write_eof()
        return response

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/{tail:.*}", handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    uvloop.run(main())


if __name__ == "__main__":
    bare_server(Path(sys.argv[1]))
