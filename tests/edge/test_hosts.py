"""By which names a server may be called."""

from __future__ import annotations

import pytest

from lmserve.edge.hosts import Hosts


@pytest.mark.parametrize(
    ("server_name", "allowed", "has_keys", "looks"),
    [
        ("127.0.0.1", (), False, True),
        ("localhost", (), False, True),
        ("::1", (), False, True),
        ("127.0.0.1", (), True, False),  # a page has no key
        ("0.0.0.0", (), False, False),  # whoever is on the network may call, by any name
        ("192.168.1.5", (), False, False),
        ("0.0.0.0", ("chat.example",), True, True),
        ("127.0.0.1", ("*",), False, False),
    ],
)
def test_when_names_are_looked_at(
    server_name: str, allowed: tuple[str, ...], has_keys: bool, looks: bool
):
    assert Hosts(server_name, allowed, has_keys=has_keys).looks is looks


@pytest.mark.parametrize(
    "named",
    [
        "127.0.0.1",
        "127.0.0.1:23333",
        "localhost:23333",
        "LOCALHOST.",
        "app.localhost:1",
        "[::1]:23333",
        "::1",
        "192.168.1.5:80",
        "mybox:23333",
        "chat.example",
        "Chat.Example.:443",
        "",
    ],
)
def test_ours(named: str):
    assert Hosts("127.0.0.1", ("chat.example",), has_keys=False).is_ours(named)


@pytest.mark.parametrize(
    "named",
    [
        "evil.example",
        "evil.example:23333",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example.",
        "xchat.example",
        "a/?x=",
        "evil.example/?x=localhost",
        "127.0.0.1@evil.example",
        "localhost#evil.example",
        "evil.example:80:80",
        "[::1].evil.example",
    ],
)
def test_not_ours(named: str):
    assert not Hosts("127.0.0.1", ("chat.example",), has_keys=False).is_ours(named)
