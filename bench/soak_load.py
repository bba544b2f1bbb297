"""What the clients of a soak do, each at random: talk, resume, fork, leave, send nonsense."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import aiohttp
from disconnects import PHASES, WORDS, visit

ANSWER_S = 180.0  # an action that takes longer is an error
THINK_S = 0.5  # between two actions of a client, on average
BUSY = (429, 503)
ENDS = ("response.completed", "response.incomplete")
NONSENSE: tuple[tuple[str, object], ...] = (
    ("/v1/chat/completions", {"messages": 5}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 2**31}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x " * 20_000}]}),
    ("/v1/completions", {"prompt": [2**31]}),
    ("/v1/completions", {"prompt": "x", "temperature": "hot"}),
    ("/v1/responses", {"input": "x", "previous_response_id": "resp_none"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}],
     "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}),
    ("/v1/sessions", {"id": "../../etc"}),
    ("/v1/files", "no form"),
)  # fmt: skip


class Wrong(Exception):
    """The server did what it should not."""


class Busy(Exception):
    """It refused, and said when to come back."""

    def __init__(self, retry_s: float):
        self.retry_s = retry_s


class Soaker:
    """What all clients share: the connection pool, and what became of their actions."""

    def __init__(self, session: aiohttp.ClientSession, url: str, seed: int):
        self.session = session
        self.url = url
        self.source = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.most_tokens = 48  # of an answer
        self.ttft_s: list[float] = []  # since the last sample
        self.gaps_s: list[float] = []

    async def client(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            action = self.source.choices(ACTIONS, WEIGHTS)[0]
            name = action.__name__
            try:
                async with asyncio.timeout(ANSWER_S):
                    await action(self)
                self.done[name] += 1
            except Busy as busy:
                self.done["refused"] += 1
                await asyncio.sleep(busy.retry_s)
            except (Wrong, TimeoutError, OSError, aiohttp.ClientError, ValueError) as error:
                self.errors[f"{name}: {type(error).__name__} {str(error)[:200]}"] += 1
            await asyncio.sleep(self.source.expovariate(1 / THINK_S))

    # --- calls --------------------------------------------------------------------------

    def text(self, num_words: int = 30) -> str:
        return " ".join(self.source.choices(WORDS, k=num_words))

    async def call(self, method: str, path: str, body: object = None) -> dict:
        async with self.session.request(method, self.url + path, json=body) as response:
            await self._check(response)
            return dict(await response.json())

    async def stream(self, path: str, body: dict, most: int | None = None) -> list[dict]:
        """The events; of `most` of them on, the client leaves."""
        events, began, last = [], time.perf_counter(), 0.0
        async with self.session.post(self.url + path, json=body | {"stream": True}) as response:
            await self._check(response)
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                events.append(json.loads(line[6:]))
                now = time.perf_counter()
                (self.gaps_s if last else self.ttft_s).append(now - (last or began))
                last = now
                if most is not None and len(events) >= most:
                    response.close()
                    break
        return events

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status in BUSY and "Retry-After" in response.headers:
            raise Busy(float(response.headers["Retry-After"]))
        if response.status != 200:
            raise Wrong(f"HTTP {response.status}: {(await response.text())[:200]}")


# --- the actions --------------------------------------------------------------------------


def _chat(soaker: Soaker, **more: object) -> dict:
    words = soaker.source.choice((5, 30, 200))
    message = {"role": "user", "content": soaker.text(words)}
    return {
        "messages": [message],
        "max_tokens": soaker.source.randint(4, soaker.most_tokens),
    } | more


async def chat(soaker: Soaker) -> None:
    await soaker.call("POST", "/v1/chat/completions", _chat(soaker))


async def several(soaker: Soaker) -> None:
    answer = await soaker.call("POST", "/v1/chat/completions", _chat(soaker, n=3, logprobs=True))
    if len(answer["choices"]) != 3:
        raise Wrong("not three choices")


async def streamed(soaker: Soaker) -> None:
    events = await soaker.stream("/v1/chat/completions", _chat(soaker))
    if not events or "error" in events[-1]:
        raise Wrong(f"a stream ended with {events[-1:]}")


async def structured(soaker: Soaker) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [soaker.source.randrange(99)]}}}
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    await soaker.call("POST", "/v1/chat/completions", _chat(soaker, response_format=shape))


async def left(soaker: Soaker) -> None:
    await soaker.stream("/v1/chat/completions", _chat(soaker), most=soaker.source.randrange(1, 20))


async def dropped(soaker: Soaker) -> None:
    phase = soaker.source.choice(PHASES)
    source = random.Random(soaker.source.random())
    await visit(soaker.url, phase(source), source)


async def resumed(soaker: Soaker) -> None:
    body = {"input": soaker.text(), "max_output_tokens": min(32, soaker.most_tokens)}
    events = await soaker.stream("/v1/responses", body, most=6)
    if events[-1]["type"] in ENDS:
        return
    id = events[0]["response"]["id"]
    path = f"{soaker.url}/v1/responses/{id}"
    query = {"stream": "true", "starting_after": str(events[-1]["sequence_number"])}
    async with soaker.session.get(path, params=query) as response:
        await soaker._check(response)
        rest = await response.text()
    if not any(end in rest for end in ENDS):
        raise Wrong("a resumed stream did not end")


async def sessions(soaker: Soaker) -> None:
    """A conversation: two turns, an edit, a fork; some are deleted, others left to be forgotten."""
    id = (await soaker.call("POST", "/v1/sessions", {}))["id"]
    turn = {"max_output_tokens": min(16, soaker.most_tokens)}
    first = await soaker.call("POST", f"/v1/sessions/{id}/turns", turn | {"input": soaker.text()})
    edit = {"input": soaker.text(), "edit": first["input_message_ids"][0]}
    await soaker.call("POST", f"/v1/sessions/{id}/turns", turn | edit)
    fork = (await soaker.call("POST", f"/v1/sessions/{id}/fork", {}))["id"]
    await soaker.call("POST", f"/v1/sessions/{fork}/turns", turn | {"input": soaker.text(5)})
    for each in (id, fork):
        if soaker.source.random() < 0.7:
            await soaker.call("DELETE", f"/v1/sessions/{each}")


async def interactive(soaker: Soaker) -> None:
    id = soaker.source.randrange(10**9)
    body = {
        "session_id": id,
        "interactive_mode": True,
        "request_output_len": min(16, soaker.most_tokens),
    }
    for _ in range(3):
        await soaker.call("POST", "/v1/chat/interactive", body | {"prompt": soaker.text(10)})
    await soaker.call("POST", "/v1/chat/interactive",
                      {"session_id": id, "prompt": "", "request_output_len": 0})  # fmt: skip


async def websocket(soaker: Soaker) -> None:
    """Two answers one after the other, the second steered, cancelled, or left in the middle."""
    async with soaker.session.ws_connect(soaker.url + "/v1/responses", heartbeat=20) as socket:
        most_tokens = min(24, soaker.most_tokens)
        create = {"type": "response.create", "max_output_tokens": most_tokens}
        id = await _answer(socket, create | {"input": soaker.text()})
        await socket.send_json(create | {"input": soaker.text(), "previous_response_id": id})
        event = await _event(socket, "response.created")
        what = soaker.source.choice(("cancel", "steer", "leave", "read"))
        id = event["response"]["id"]
        if what == "cancel":
            await socket.send_json({"type": "session.cancel", "response_id": id})
        if what == "steer":
            steer = {"type": "response.steer", "previous_response_id": id, "input": "Briefly."}
            await socket.send_json(steer)
        if what != "leave":
            await _event(socket, *ENDS)


async def _answer(socket: aiohttp.ClientWebSocketResponse, create: dict) -> str:
    await socket.send_json(create)
    event = await _event(socket, *ENDS)
    return str(event["response"]["id"])


async def _event(socket: aiohttp.ClientWebSocketResponse, *types: str) -> dict:
    async for message in socket:
        event = json.loads(message.data)
        if event["type"] in types:
            return dict(event)
        if event["type"] == "error":
            if event.get("status") in BUSY or "overloaded" in str(event):
                raise Busy(1.0)
            raise Wrong(str(event))
    raise Wrong(f"the socket was closed with {socket.close_code}")


async def batch(soaker: Soaker) -> None:
    lines = [
        {"custom_id": str(each), "method": "POST", "url": "/v1/chat/completions",
         "body": _chat(soaker, max_tokens=4)} for each in range(3)
    ]  # fmt: skip
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", "\n".join(map(json.dumps, lines)), filename="lines.jsonl")
    async with soaker.session.post(f"{soaker.url}/v1/files", data=form) as response:
        await soaker._check(response)
        file = (await response.json())["id"]
    made = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    id = (await soaker.call("POST", "/v1/batches", made))["id"]
    for _ in range(300):
        seen = await soaker.call("GET", f"/v1/batches/{id}")
        if seen["status"] in ("completed", "failed", "expired", "cancelled"):
            break
        await asyncio.sleep(0.5)
    else:
        raise Wrong(f"a batch is still {seen['status']}")
    if seen["status"] != "completed" or seen["request_counts"]["failed"]:
        raise Wrong(f"a batch {seen['status']}: {seen['request_counts']}")
    for each in (seen["output_file_id"], file):
        await soaker.call("DELETE", f"/v1/files/{each}")


async def nonsense(soaker: Soaker) -> None:
    path, body = soaker.source.choice(NONSENSE)
    async with soaker.session.post(soaker.url + path, json=body) as response:
        await response.read()
        if not 400 <= response.status < 500:
            raise Wrong(f"{path} {str(body)[:80]} got {response.status}")


async def garbage(soaker: Soaker) -> None:
    """Bytes that are no JSON, or no HTTP."""
    data = soaker.source.randbytes(soaker.source.randrange(1, 4096))
    async with soaker.session.post(f"{soaker.url}/v1/chat/completions", data=data) as response:
        await response.read()
        if not 400 <= response.status < 500:
            raise Wrong(f"garbage got {response.status}")


async def embedded(soaker: Soaker) -> None:
    await soaker.call("POST", "/v1/embeddings", {"input": [soaker.text(), soaker.text()]})


ACTIONS: tuple[Callable[[Soaker], Awaitable[None]], ...]
ACTIONS, WEIGHTS = zip(
    (chat, 4), (streamed, 6), (several, 1), (structured, 1), (left, 3), (dropped, 4), (resumed, 2),
    (sessions, 2), (interactive, 2), (websocket, 3), (batch, 1), (nonsense, 3), (garbage, 1),
    (embedded, 1), strict=True,
)  # fmt: skip
