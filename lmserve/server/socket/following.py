"""Streams shown on a connection, each by a reader of its log."""

from __future__ import annotations

from collections import Counter

from lmserve.edge.socket.writer import Writer
from lmserve.protocol.socket_events import on_lane, wrapped
from lmserve.service.streams.stream import Stream, StreamEvent


class Following:
    """Those of one connection."""

    def __init__(self, writer: Writer):
        self._writer = writer
        self._shown: Counter[str] = Counter()

    def shows(self, id: str) -> bool:
        return self._shown[id] > 0

    async def follow(self, stream: Stream, starting_after: int, stream_id: str | None) -> None:
        """Shows what follows that event, until the stream ends. While the client keeps up, each
        event is written in the turn that brings it. Raises as `Stream.reading` does, EventsGone
        too where the client is too slow for the log."""

        def show(number: int, event: StreamEvent) -> bool:
            if event.name:
                return self._writer.write_now(on_lane(event.data, stream_id))
            return self._writer.write_now(wrapped(event.data, number, stream.id, stream_id))

        with stream.reading(starting_after) as reader:
            self._shown[stream.id] += 1
            try:
                while not reader.at_end:
                    await self._writer.drained()
                    await reader.follow(show)
            finally:
                self._shown[stream.id] -= 1
                self._shown += Counter()  # drops zeros
