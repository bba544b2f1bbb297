"""All streams that can be read again, found by their ids; the bounds on them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lmserve.errors import StreamNotFound
from lmserve.service.streams.stream import Stream
from lmserve.settings import StreamSettings


class Streams:
    """Lives on the service's loop. A stream of another owner is as none. `close` after the
    producers."""

    def __init__(self, settings: StreamSettings):
        self.num_bytes = 0
        self._settings = settings
        self._streams: dict[str, Stream] = {}
        self._ended: dict[str, asyncio.TimerHandle] = {}  # that forgets it; oldest end first
        self._on_forgotten: dict[str, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def num_ended(self) -> int:
        return len(self._ended)

    def open(
        self,
        id: str,
        owner: str,
        on_abandoned: Callable[[], None],
        *,
        grace: bool = True,
        on_forgotten: Callable[[], None] | None = None,
    ) -> Stream:
        """A new stream, which has its grace until its first reader comes; no other may have had
        its id. `grace` False: its answer goes on without readers. `on_forgotten` is called when
        it is found no longer."""
        assert id not in self._streams
        settings = self._settings
        stream = Stream(
            id,
            owner,
            max_bytes=settings.max_stream_bytes,
            grace_s=settings.stream_grace_s if grace else None,
            on_abandoned=on_abandoned,
            on_growth=self._on_growth,
        )
        self._streams[id] = stream
        if on_forgotten is not None:
            self._on_forgotten[id] = on_forgotten
        stream.await_reader()
        self._on_growth(stream.num_bytes)
        return stream

    def end(self, stream: Stream) -> None:
        """No event follows; what there is is kept for a while. Idempotent."""
        stream.end()
        if self._streams.get(stream.id) is stream and stream.id not in self._ended:
            loop = asyncio.get_running_loop()
            self._ended[stream.id] = loop.call_later(
                self._settings.stream_keep_s, self._forget, stream.id
            )

    def find(self, owner: str, id: str) -> Stream:
        """Raises StreamNotFound."""
        stream = self._streams.get(id)
        if stream is None or stream.owner != owner:
            raise StreamNotFound(f"there is no stream {id[:70]!r}, or it ended too long ago")
        return stream

    def forget(self, stream: Stream) -> None:
        """An ended one is found no longer; who reads it reads on. Idempotent."""
        assert stream.ended
        if self._streams.get(stream.id) is stream:
            self._forget(stream.id)

    def close(self) -> None:
        """Ends and forgets all. Idempotent."""
        for stream in list(self._streams.values()):
            self.end(stream)
            self._forget(stream.id)

    # --- room -------------------------------------------------------------------------

    def _on_growth(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self.num_bytes > self._settings.max_streams_bytes:
            self._make_room()

    def _make_room(self) -> None:
        """Ended streams go first; then the older half of the largest: one look at all of them
        is paid once for many events."""
        most = self._settings.max_streams_bytes
        while self.num_bytes > most and self._ended:
            oldest = next(iter(self._ended))
            stream = self._streams[oldest]
            self._forget(oldest)
            stream.clear()
        while self.num_bytes > most:
            largest = max(self._streams.values(), key=lambda stream: stream.num_bytes)
            dropped = largest.drop(largest.num_bytes // 2)
            if not dropped:
                return  # an event each: as many as there are running answers
            self.num_bytes -= dropped

    def _forget(self, id: str) -> None:
        stream = self._streams.pop(id)
        self._ended.pop(id).cancel()
        self.num_bytes -= stream.num_bytes
        if (on_forgotten := self._on_forgotten.pop(id, None)) is not None:
            on_forgotten()
