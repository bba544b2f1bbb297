#!/usr/bin/env python3
"""The front end alone: `--engine mock` through SSE, against a bare aiohttp handler.

    .venv/bin/python bench/frontend.py --streams 64 --tokens 512 --pairs 5

A mock engine produces tokens at full speed, so what is measured is everything lmserve does
for a token outside the engine: bridge, detokeniser, events, JSON, socket. The bare handler
writes the very bytes that lmserve wrote, one write a chunk, with nothing computed. Both run
in their own process, in turn; the client reads raw bytes on the other core. Prints tokens a
second by wall clock and by the server's own CPU time, and the ratio lmserve / bare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAD = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Content-Length: {length}\r\nConnection: close\r\n\r\n"
)


def bare_server(transcript: str) -> None:
    """Serves the chunks in the file (JSON list of strings) to every POST, unchanged."""
    import uvloop
    from aiohttp import web

    chunks = [chunk.encode() for chunk in json.loads(Path(transcript).read_text())]

    async def handler(request: web.Request) -> web.StreamResponse:
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
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    uvloop.run(main())


class Server:
    """A server process that prints its URL, and the CPU seconds it has used."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        self.port = 0
        for line in self.process.stdout:
            if "http://127.0.0.1:" in line:
                rest = line.split("http://127.0.0.1:", 1)[1]
                digits = ""
                for char in rest:
                    if not char.isdigit():
                        break
                    digits += char
                self.port = int(digits)
                break
        if not self.port:
            raise SystemExit(f"{command[0]} did not print its URL")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


async def stream(port: int, path: str, body: bytes, keep: bool = False) -> bytes:
    """Sends one request and reads to the end; returns the bytes if `keep`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = HEAD.format(path=path, length=len(body))
    writer.write(head.encode() + body)
    kept = bytearray()
    while data := await reader.read(1 << 18):
        if keep:
            kept += data
    writer.close()
    return bytes(kept)


def chunks_of(raw: bytes) -> list[str]:
    """The SSE events of one answer, without HTTP's chunk framing."""
    body = raw.split(b"\r\n\r\n", 1)[1]
    out = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            break
        out += rest[:length]
        body = rest[length + 2 :]
    return [event + "\n\n" for event in out.decode().split("\n\n") if event]


async def load(server: Server, path: str, streams: int, tokens: int) -> tuple[float, float]:
    """Runs all streams at once: (tokens a second by wall, tokens a second of server CPU)."""
    body = request_body(path, tokens)
    cpu, begin = server.cpu_s(), time.perf_counter()
    await asyncio.wait_for(
        asyncio.gather(*(stream(server.port, path, body) for _ in range(streams))), 300
    )
    wall, cpu = time.perf_counter() - begin, server.cpu_s() - cpu
    return streams * tokens / wall, streams * tokens / max(cpu, 0.01)


def request_body(path: str, tokens: int) -> bytes:
    body: dict = {"ignore_eos": True, "stream": True}
    if path == "/v1/responses":
        body |= {"input": "hi", "max_output_tokens": tokens}
    else:
        body |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
    return json.dumps(body).encode()


async def run(args: argparse.Namespace, folder: str) -> dict:
    path = args.path
    front = Server(
        [sys.executable, "-m", "lmserve", "serve", "api_server", "--engine", "mock",
         "--server-port", "0", "--log-level", "warning", "--data-dir", folder]
    )  # fmt: skip
    transcript = Path(args.transcript)
    try:
        one = chunks_of(await stream(front.port, path, request_body(path, args.tokens), keep=True))
        await asyncio.to_thread(transcript.write_text, json.dumps(one))
        bare = Server([sys.executable, __file__, "--bare", str(transcript)])
        try:
            rows = []
            for _ in range(args.pairs):
                a = await load(front, path, args.streams, args.tokens)
                b = await load(bare, path, args.streams, args.tokens)
                rows.append((*a, *b))
        finally:
            bare.close()
    finally:
        front.close()
    mid = statistics.median
    return {
        "path": path,
        "streams": args.streams,
        "tokens": args.tokens,
        "chunks_in_one_answer": len(one),
        "lmserve_tok_s": round(mid(r[0] for r in rows)),
        "bare_tok_s": round(mid(r[2] for r in rows)),
        "ratio_wall": [round(r[0] / r[2], 3) for r in rows],
        "ratio_wall_median": round(mid(r[0] / r[2] for r in rows), 3),
        "lmserve_tok_per_cpu_s": round(mid(r[1] for r in rows)),
        "bare_tok_per_cpu_s": round(mid(r[3] for r in rows)),
        "ratio_cpu_median": round(mid(r[1] / r[3] for r in rows), 3),
    }


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--path", default="/v1/chat/completions", help="or /v1/responses")
    ap.add_argument("--streams", type=int, default=64)
    ap.add_argument("--tokens", type=int, default=512)
    ap.add_argument("--pairs", type=int, default=5)
    ap.add_argument("--transcript", default="/tmp/lmserve-frontend-transcript.json")
    ap.add_argument("--bare", default="", help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.bare:
        bare_server(args.bare)
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asyncio.run(run(args, folder)), indent=1))


if __name__ == "__main__":
    main()
