"""What has come of a WebSocket message that is not whole: aiohttp keeps it, and does not tell."""

from __future__ import annotations

_FINAL, _CONTROL, _LENGTH = 0x80, 0x08, 0x7F
_MORE = {126: 2, 127: 8}  # bytes that say the length, where seven bits do not
_MASK_BYTES = 4


class Arriving:
    """Reads the heads of frames alone; what is wrong in them is for aiohttp to say."""

    def __init__(self) -> None:
        self.num_bytes = 0  # heads and all; 0: nothing is awaited
        self.num_messages = 0  # whole ones
        self._head = bytearray()
        self._left = 0  # of the frame's payload
        self._message_bytes = 0  # in frames before this one

    def feed(self, data: bytes) -> None:
        at, end = 0, len(data)
        while at < end:
            if self._left:
                taken = min(self._left, end - at)
                self._left -= taken
            else:
                taken = min(_missing(self._head), end - at)
                self._head += data[at : at + taken]
                if not _missing(self._head):
                    self._left = _payload_bytes(self._head)
            at += taken
            self.num_bytes += taken
            if not self._left and not _missing(self._head):
                self._end_frame()

    def _end_frame(self) -> None:
        first = self._head[0]
        if first & _CONTROL:  # between the others, and none of their message
            self.num_bytes = self._message_bytes
        elif first & _FINAL:
            self.num_bytes = 0
            self.num_messages += 1
        self._message_bytes = self.num_bytes
        self._head.clear()


def _missing(head: bytearray) -> int:
    """Bytes of a frame's head that have not come, as far as is known."""
    if len(head) < 2:
        return 2 - len(head)
    masked = _MASK_BYTES if head[1] & _FINAL else 0
    return 2 + _MORE.get(head[1] & _LENGTH, 0) + masked - len(head)


def _payload_bytes(head: bytearray) -> int:
    length = head[1] & _LENGTH
    return int.from_bytes(head[2 : 2 + _MORE[length]], "big") if length in _MORE else length
