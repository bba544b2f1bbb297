"""What a service manager is told (systemd's sd_notify): ready, stopping, and still alive.

Without one, nothing is done. A server whose loop stands still, or whose engine is given up, says
no more that it lives; systemd then starts it again, where the unit has `WatchdogSec=`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable


def notify(*lines: str) -> None:
    """For example `READY=1`. What cannot be told is not."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # of Linux's abstract ones
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto("\n".join(lines).encode(), address)


async def tell_alive(is_well: Callable[[], bool]) -> None:
    """Until cancelled: as often as the manager wants to hear it, while all is well."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    if not wanted.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        if is_well():
            notify("WATCHDOG=1")
        await asyncio.sleep(int(wanted) / 3e6)
