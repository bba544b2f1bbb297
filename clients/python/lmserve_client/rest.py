"""Calls and answers over HTTP: for whoever cannot have a WebSocket, and where one cannot help."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import cached_property
from typing import Any

import httpx2

from lmserve_client.backoff import Backoff
from lmserve_client.base import USER_AGENT, connection_error
from lmserve_client.errors import APIError, APIStatusError, status_error
from lmserve_client.lane import Lane
from lmserve_client.parsing import AnswerParser, parse_object
from lmserve_client.target import Target
from lmserve_client.types import JSONObject
from lmserve_client.verbs import Verb

OVERLOADED = (429, 502, 503, 504)
POLL_S = 0.5
MAX_LOOKS = 10  # for the successor of an answer that was steered
RESPONSES = "/v1/responses"


class Rest:
    def __init__(self, target: Target):
        self._target = target

    async def aclose(self) -> None:
        if "_http" in self.__dict__:
            await self._http.aclose()

    @cached_property
    def _http(self) -> httpx2.AsyncClient:
        target = self._target
        return httpx2.AsyncClient(
            base_url=target.url,
            headers={"user-agent": USER_AGENT, **target.headers()},
            timeout=httpx2.Timeout(target.read_timeout_s, connect=target.connect_timeout_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            verify=target.verify,
        )

    async def call(self, verb: Verb, fields: JSONObject) -> JSONObject:
        """What the server answers. What can be asked twice is, where a connection broke."""
        path, rest = verb.rest(fields)
        backoff = Backoff(self._target.reconnect_within_s)
        num_tries = 0
        while True:
            num_tries += 1
            try:
                return await self._once(verb.method, path, rest)
            except httpx2.RequestError as error:
                unsent = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout))
                delay_s = backoff.next() if verb.repeats or unsent else None
                if delay_s is None:
                    raise connection_error(error) from error
            except APIStatusError as error:
                done = done_before(verb, fields, error) if num_tries > 1 else None
                if done is None:
                    raise
                return done
            await asyncio.sleep(delay_s)

    async def steer(self, response_id: str, input: Any) -> JSONObject:
        """Sent once: said twice it would be heard twice."""
        try:
            return await self._once("POST", f"{RESPONSES}/{response_id}/steer", {"input": input})
        except httpx2.RequestError as error:
            raise connection_error(error) from error

    async def follow(self, lane: Lane) -> None:
        """Brings a lane all its events, over as many connections as it takes."""
        backoff = Backoff(self._target.reconnect_within_s)
        while not lane.ended:
            last = (lane.response_id, lane.last)
            try:
                await self._listen(lane)
                reason: APIError | None = None
            except httpx2.RequestError as error:
                reason = connection_error(error)
            except APIStatusError as error:
                if lane.response_id is not None:
                    return await self.recover(lane)
                return lane.fail(error)
            if lane.over and not lane.ended:
                return await self.recover(lane)
            if (lane.response_id, lane.last) != last:
                backoff.reset()
            if not lane.ended:
                delay_s = backoff.next()
                if delay_s is None:
                    return lane.fail(reason or APIError("the server sends no end of the answer"))
                await asyncio.sleep(delay_s)

    async def recover(self, lane: Lane) -> None:
        """Of an answer whose next events cannot be had: it is looked at until it has ended."""
        backoff, looks = Backoff(self._target.reconnect_within_s), 0
        while not lane.ended:
            delay_s: float | None = POLL_S
            try:
                response = await self._once("GET", f"{RESPONSES}/{lane.response_id}", {})
                backoff.reset()
                lane.take_whole(response)
                if lane.over and not lane.ended:
                    successor = await self._successor(response)
                    if successor is not None:
                        lane.follow(successor)
                        return await self.follow(lane)
                    looks += 1
                    if looks == MAX_LOOKS:
                        lane.end()
            except httpx2.RequestError as error:
                delay_s = backoff.next()
                if delay_s is None:
                    return lane.fail(connection_error(error))
            except APIStatusError as error:
                delay_s = backoff.next() if error.status in OVERLOADED else None
                if delay_s is None:
                    return lane.fail(error)
            if not lane.ended:
                await asyncio.sleep(delay_s or POLL_S)

    async def _successor(self, response: JSONObject) -> str | None:
        """What goes on with an answer that was steered."""
        if response.get("successor"):
            return str(response["successor"])
        session = await self._once("GET", f"/v1/sessions/{response['session']}", {})
        for id in session.get("running") or ():
            running = await self._once("GET", f"{RESPONSES}/{id}", {})
            if running.get("previous_response_id") == response["id"]:
                return str(id)
        return None

    async def _listen(self, lane: Lane) -> None:
        """One connection's worth of a lane."""
        if lane.response_id is None:
            body = {**lane.body, "stream": True}
            headers = {"Idempotency-Key": str(body.pop("idempotency_key"))}
            request = self._http.build_request("POST", RESPONSES, json=body, headers=headers)
        else:
            request = self._http.build_request(
                "GET",
                f"{RESPONSES}/{lane.response_id}",
                params={
                    "stream": "true",
                    **({"starting_after": lane.last} if lane.last >= 0 else {}),
                },
            )
        async for item in self._events(request):
            lane.take(item)
            if lane.over:
                return

    async def _events(self, request: httpx2.Request) -> AsyncGenerator[JSONObject, None]:
        response = await self._http.send(request, stream=True)
        try:
            await self._check(response)
            parser = AnswerParser()
            async for data in response.aiter_bytes():
                for item in parser.feed(data):
                    yield item
        finally:
            await response.aclose()

    async def _once(self, method: str, path: str, fields: JSONObject) -> JSONObject:
        if method == "GET":
            query = {
                name: str(value).lower() if isinstance(value, bool) else value
                for name, value in fields.items()
            }
            response = await self._http.request(method, path, params=query)
        elif method == "DELETE":
            response = await self._http.request(method, path)
        else:
            response = await self._http.request(method, path, json=fields)
        await self._check(response)
        return parse_object(response.content)

    async def _check(self, response: httpx2.Response) -> None:
        if not response.is_success:
            content = await response.aread()
            raise status_error(response.status_code, content, response.headers)


def done_before(verb: Verb, fields: JSONObject, error: APIStatusError) -> JSONObject | None:
    """What a second try is answered where the first was done and its answer lost."""
    if verb.method == "DELETE" and error.code == "session_not_found":
        return {"id": fields["session"], "object": "session.deleted", "deleted": True}
    return None
