"""The engine in a process of its own: its main, and the handle that owns it.

The process ends when the server's end of the channel does, whatever it is doing then, so none
is ever orphaned. SIGINT and SIGTERM are not for it, though a terminal or a service manager sends
them to both: the server lets running answers finish, and decides when it stops.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import lmserve
from lmserve import logs
from lmserve.allocator import share_arenas
from lmserve.bridge.channel import EngineChannel, ServerGone
from lmserve.bridge.host import Boot, preload, run
from lmserve.bridge.remote import RemoteEngine
from lmserve.bridge.supervision import POLL_S
from lmserve.messages import EngineInfo

EXIT_GRACE_S = 2.0  # from the end of the channel to the end of the process
NAME, STANDBY_NAME = "lmserve-engine", "lmserve-standby"  # as `ps` and `top` show them


class ChildEngine(RemoteEngine):
    """The default: the engine in a child process."""

    NOUN = "engine process"
    STANDBY_AFTER_S = 2.0  # the first requests to a new engine have the cores to themselves
    _process: subprocess.Popen[bytes] | None = None
    _standby: asyncio.Task[Child] | None = None
    _due: asyncio.TimerHandle | None = None  # when that is started

    async def _launch(self) -> socket.socket:
        child = await self._take_standby() or await _spawn()
        self._process = child.process
        return child.sock

    async def _bury(self, *, at_once: bool) -> str:
        process, self._process = self._process, None
        assert process is not None
        if at_once:
            process.kill()
        code = await _end_of(process)
        if at_once:
            return "it did not answer and was killed"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL, perhaps by the system for want of memory"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    # --- the next one ---

    def _on_ready(self, info: EngineInfo) -> None:
        super()._on_ready(info)
        if self._settings.standby and self._settings.restart and self._standby is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(self.STANDBY_AFTER_S, self._stand_by)

    def _stand_by(self) -> None:
        self._standby = asyncio.create_task(_spawn(self._core))

    async def _take_standby(self) -> Child | None:
        """One that has imported what takes long, or is at it; None where there is none."""
        if self._due is not None:
            self._due.cancel()
        task, self._standby = self._standby, None
        try:
            child = None if task is None else await task
        except (OSError, RuntimeError):  # no process, or no thread to start it in
            return None
        if child is not None and child.process.poll() is not None:
            child.sock.close()
            return None
        return child

    async def _no_more(self) -> None:
        if (child := await self._take_standby()) is not None:
            child.sock.close()
            child.process.kill()
            await _end_of(child.process)


@dataclass(frozen=True, slots=True)
class Child:
    process: subprocess.Popen[bytes]
    sock: socket.socket  # our end of its channel


async def _spawn(standby: str | None = None) -> Child:
    """Not to be cancelled. `standby` names the core that it makes ready to load, while it waits
    to be told what."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with theirs:
            return Child(await asyncio.to_thread(_popen, theirs, standby), ours)
    except BaseException:
        ours.close()
        raise


def _popen(sock: socket.socket, standby: str | None) -> subprocess.Popen[bytes]:
    """The child writes to our stderr only: our stdout may be an answer. Its own session keeps
    the terminal's Ctrl-C from it even before it can ignore it."""
    env = dict(os.environ)
    package_root = str(Path(lmserve.__file__).parents[1])
    if Path(package_root).name not in ("site-packages", "dist-packages"):  # run from a checkout
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, env.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "lmserve.bridge.child", "--fd", str(sock.fileno())]
    return subprocess.Popen(
        [*command, "--standby", standby] if standby else command,
        pass_fds=(sock.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=2,
        env=env,
        start_new_session=True,
    )


async def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; killed where it takes long. Polled, as `Popen.wait` does it in a thread:
    an engine may die of a system that has none to give."""
    loop = asyncio.get_running_loop()
    kill_at = loop.time() + EXIT_GRACE_S + 1.0
    while (code := process.poll()) is None:
        if loop.time() >= kill_at:
            process.kill()
        await asyncio.sleep(POLL_S)
    return code


# --- in the child ---


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="lmserve.bridge.child")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--standby", metavar="CORE")
    args = parser.parse_args()
    share_arenas()
    sock = socket.socket(fileno=args.fd)
    sock.set_inheritable(False)  # what an engine starts may outlive it: the channel must not
    channel = EngineChannel(sock)
    ended = threading.Event()
    threading.Thread(
        target=_exit_with_server, args=(sock.fileno(), ended), name="exit with server", daemon=True
    ).start()
    with contextlib.suppress(ServerGone):
        if args.standby:
            _be_called(STANDBY_NAME)
            preload(args.standby)
        boot = channel.receive_first(Boot)
        _be_called(NAME)
        logs.set_up(boot.log_level, boot.log_format, boot.log_date_format)
        failure = run(channel, boot, freeze=True)
        ended.set()
        return 0 if failure is None else 1
    return 0


def _be_called(name: str) -> None:
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/comm").write_text(name)


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
