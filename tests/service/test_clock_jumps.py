"""The time of day is set back and forth by hours; what lives goes on, and what waits does not."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.edge.key_file import digest_of
from lmserve.edge.keyring import Keyring
from lmserve.errors import SessionLost
from lmserve.service.generate import Service
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.store.store import SessionKey
from lmserve.settings import SessionSettings
from tests.service.batches.clerk import Clerk, Echo, clerk, echo, until  # noqa: F401
from tests.service.conftest import Wall
from tests.service.talk import KEY, ask, contents, say

HOURS_S = 5 * 3600.0


async def test_a_session_survives_a_jump_back(sessions: Sessions, wall: Wall) -> None:
    wall.now_s += HOURS_S
    await say(sessions, ask("q", max_tokens=1))
    wall.now_s -= HOURS_S
    await sessions.keeper.sweep()
    await say(sessions, ask("w", max_tokens=1))
    assert len(await contents(sessions)) == 4
    wall.now_s += HOURS_S + 99
    assert len(await contents(sessions)) == 4
    wall.now_s += 2
    with pytest.raises(SessionLost, match="not used for 100 s"):
        await sessions.turn(KEY, ask("e"), keep=True)


async def test_what_was_used_after_a_jump_back_is_not_the_first_to_go(
    engine: FakeEngine, service: Service, options: SessionSettings, wall: Wall
) -> None:
    settings = dataclasses.replace(options, max_sessions=2, session_ttl_s=10 * HOURS_S)
    sessions = Sessions(service, settings, clock=wall)
    await sessions.open()
    try:
        wall.now_s += HOURS_S
        await say(sessions, ask("q", max_tokens=1), SessionKey("", "1"))
        wall.now_s -= HOURS_S
        for id in ("2", "3"):
            await say(sessions, ask("q", max_tokens=1), SessionKey("", id))
        assert len(await contents(sessions, SessionKey("", "2"))) == 2
        assert len(await contents(sessions, SessionKey("", "3"))) == 2
        with pytest.raises(SessionLost, match="made room"):
            await sessions.turn(SessionKey("", "1"), ask("w"), keep=True)
    finally:
        await sessions.close()


async def test_batches_and_files_survive_a_jump_back(clerk: Clerk, echo: Echo) -> None:  # noqa: F811
    echo.held = {"b"}
    batch = await clerk.begin(["a", "b"], completion_window="1h")
    await until(lambda: batch.num_completed == 1)
    clerk.now_s -= HOURS_S
    await clerk.batches.sweep()
    assert batch.status == "in_progress"
    clerk.now_s += HOURS_S + 3599
    await clerk.batches.sweep()
    assert batch.status == "in_progress"
    clerk.now_s += 1
    await clerk.batches.sweep()
    ended = await clerk.ended(batch)
    assert (ended.status, ended.num_completed) == ("expired", 1)
    clerk.now_s -= HOURS_S
    await clerk.batches.sweep()
    assert clerk.told(ended.output_file_id) == ["a"]


def test_a_key_stands_by_the_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.toml"
    digest = digest_of("sk-one").hex()
    path.write_text(f'[a]\nsha256 = "{digest}"\nexpires = 2027-01-01\n')
    path.chmod(0o600)
    keys = Keyring((), key_file=str(path))
    keys.read()
    owner, now_s = digest[:16], 1798761600.0  # that day begins
    for offset_s, stands in ((-1.0, True), (1.0, False), (-HOURS_S, True), (HOURS_S, False)):
        monkeypatch.setattr(time, "time", lambda at=now_s + offset_s: at)
        assert keys.knows(owner) == stands
        assert (keys.owner_of("sk-one") == owner) == stands
