"""The engine in a process of its own: its main, and the handle that owns it.

The process ends when the server's end of the channel does, whatever it is doing then, so none
is ever orphaned. SIGINT and SIGTERM are not for it, though a terminal or a service manager sends
them to both: the server lets running answers finish, and decides when it stops.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import lmserve
from lmserve.bridge.channel import EngineChannel, ServerGone
from lmserve.bridge.host import Boot, run
from lmserve.bridge.remote import RemoteEngine

EXIT_GRACE_S = 2.0  # from the end of the channel to the end of the process


class ChildEngine(RemoteEngine):
    """The default: the engine in a child process."""

    NOUN = "engine process"
    _process: subprocess.Popen[bytes] | None = None

    async def _launch(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                self._process = await asyncio.to_thread(_spawn, theirs)
        except BaseException:
            ours.close()
            raise
        return ours

    async def _bury(self, *, at_once: bool) -> str:
        process, self._process = self._process, None
        assert process is not None
        if at_once:
            process.kill()
        code = await asyncio.to_thread(_wait_or_kill, process)
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


def _spawn(sock: socket.socket) -> subprocess.Popen[bytes]:
    """The child writes to our stderr only: our stdout may be an answer. Its own session keeps
    the terminal's Ctrl-C from it even before it can ignore it."""
    env = dict(os.environ)
    package_root = str(Path(lmserve.__file__).parents[1])
    if Path(package_root).name not in ("site-packages", "dist-packages"):  # run from a checkout
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, env.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "lmserve.bridge.child", "--fd", str(sock.fileno())],
        pass_fds=(sock.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=2,
        env=env,
        start_new_session=True,
    )


def _wait_or_kill(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(EXIT_GRACE_S + 1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


# --- in the child ---


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="lmserve.bridge.child")
    parser.add_argument("--fd", type=int, required=True)
    sock = socket.socket(fileno=parser.parse_args().fd)
    channel = EngineChannel(sock)
    ended = threading.Event()
    threading.Thread(
        target=_exit_with_server, args=(sock.fileno(), ended), name="exit with server", daemon=True
    ).start()
    with contextlib.suppress(ServerGone):
        boot = channel.receive_first(Boot)
        logging.basicConfig(
            level=boot.log_level, format=boot.log_format, datefmt=boot.log_date_format
        )
        failure = run(channel, boot, freeze=True)
        ended.set()
        return 0 if failure is None else 1
    return 0


def _exit_with_server(fd: int, ended: threading.Event) -> None:
    """Ends the process soon after the server's end of the channel is closed, even in the
    middle of a load or a step."""
    poll = select.poll()
    poll.register(fd, 0)  # hang-up and error are always told
    poll.poll()
    if not ended.wait(EXIT_GRACE_S):
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
