"""The file of API keys: what it may say, and what is told of what it may not."""

from __future__ import annotations

import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lmserve.edge.key_file import append, digest_of, entry, is_exposed, keys_in, read_keys
from lmserve.edge.keyring import Keyring
from lmserve.errors import Forbidden, SetupError
from lmserve.types import KeyLimits

ONE, TWO = digest_of("sk-one").hex(), digest_of("sk-two").hex()


def test_what_a_table_says():
    (key,) = keys_in(
        f'[alice]\nsha256 = "{ONE.upper()}"\nscopes = ["use", "metrics"]\nmax_requests = 2\n'
        "requests_per_minute = 60\ntokens_per_minute = 1000\nweight = 2\nexpires = 2027-01-01\n",
        "keys.toml",
    )
    assert (key.name, key.digest.hex(), key.owner) == ("alice", ONE, ONE[:16])
    assert key.limits == KeyLimits(2, 60, 1000, 2.0)
    assert key.expires_s == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert key.may("use") and key.may("metrics") and not key.may("admin")


def test_without_scopes_a_key_may_only_use():
    (key,) = keys_in(f'["a@b"]\nsha256 = "{ONE}"\n', "keys.toml")
    assert [key.may(scope) for scope in ("use", "metrics", "admin")] == [True, False, False]


def test_an_admin_may_everything():
    (key,) = keys_in(f'[a]\nsha256 = "{ONE}"\nscopes = ["admin"]\n', "keys.toml")
    assert key.may("use") and key.may("metrics") and key.may("admin")


A = f'[a]\nsha256 = "{ONE}"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a\n", "keys.toml: not a TOML file: .*line 1"),
        ("[a]\n", r"keys.toml line 1: \[a\] has no sha256: `lmserve keys new`"),
        ('\n[a]\nsha256 = "sk-one"\n', r"line 3: \[a\] sha256 must be .*64 hex digits"),
        (A + "scope = 1\n", r"line 3: \[a\] scope is unknown; did you mean scopes\?"),
        (A + "scopes = []\n", r"line 3: \[a\] scopes must be a list"),
        (A + 'scopes = ["root"]\n', r"line 3: \[a\] scopes must be a list"),
        (A + "scopes = [[]]\n", r"line 3: \[a\] scopes must be a list"),
        (A + "max_requests = 0\n", "line 3: .*max_requests must be a whole number above 0"),
        (A + "max_requests = true\n", "line 3: .*max_requests must be a whole number"),
        (A + "tokens_per_minute = 1.5\n", "line 3: .*tokens_per_minute must be a whole number"),
        (A + "weight = nan\n", "line 3: .*weight must be a number"),
        (A + 'expires = "soon"\n', "line 3: .*expires must be a date"),
        (A + f'\n[b]\nsha256 = "{ONE}"\n', r"line 5: \[b\] sha256 is the key of \[a\] too"),
        ("a = 1\n", r"line 1: \[a\] must be a table"),
        ('["a b"]\n', r"line 1: \[a b\] is no name"),
        (f'[a]\nsha256 = "{ONE}"\n[a.b]\nc = 1\n', r"\[a\] b is unknown"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, told: str):
    with pytest.raises(SetupError, match=told) as caught:
        keys_in(text, "keys.toml")
    assert "\n" not in caught.value.message
    assert ONE not in caught.value.message


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path):
    with pytest.raises(SetupError, match=r"no such file.*lmserve keys new"):
        read_keys(tmp_path / "none.toml")
    (tmp_path / "keys.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SetupError, match="no UTF-8"):
        read_keys(tmp_path / "keys.toml")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SetupError, match="is no file"):
            read_keys(path)


def test_an_entry_that_root_adds_leaves_the_file_to_its_owner(tmp_path: Path):
    path = tmp_path / "keys.toml"
    append(path, "a", entry("a", bytes.fromhex(ONE), {}))
    os.chown(path, 12345, 12346)
    append(path, "b", entry("b", bytes.fromhex(TWO), {}))
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_entries_are_added_and_the_rest_stays(tmp_path: Path):
    path = tmp_path / "keys.toml"
    append(path, "a", entry("a", bytes.fromhex(ONE), {"scopes": ("use",)}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not is_exposed(path)
    path.write_text(path.read_text() + "# mine")
    os.chmod(path, 0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    append(link, "b.c", entry("b.c", bytes.fromhex(TWO), {"max_requests": 3, "weight": 0.5}))
    assert link.is_symlink() and is_exposed(link)
    assert "# mine\n" in path.read_text()
    assert [(key.name, key.limits.max_requests) for key in read_keys(path)] == [
        ("a", None),
        ("b.c", 3),
    ]
    with pytest.raises(SetupError, match="has a key named a"):
        append(path, "a", entry("a", digest_of("sk-three"), {}))


@pytest.mark.parametrize("name", ['a"]\nx', "", "ü", "a b", "x" * 65])
def test_no_name_gets_out_of_its_table(name: str):
    with pytest.raises(SetupError, match="is no name"):
        entry(name, digest_of("sk"), {})


# --- the keyring over it ----------------------------------------------------------------------


def ring(tmp_path: Path, text: str) -> Keyring:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    path.chmod(0o600)
    keyring = Keyring(["sk-api"], key_file=str(path), limits=KeyLimits(9, None, 100))
    keyring.read()
    return keyring


def test_limits_are_a_keys_own_or_the_settings(tmp_path: Path):
    keyring = ring(tmp_path, A + "max_requests = 2\nrequests_per_minute = 5\nweight = 3\n")
    owner = keyring.owner_of("sk-one")
    assert owner == ONE[:16] and keyring.name_of(owner) == "a"
    assert keyring.limits_of(owner) == KeyLimits(2, 5, 100, 3.0)
    api = keyring.owner_of("sk-api") or ""
    assert keyring.name_of(api) == "api-1"
    assert keyring.limits_of(api) == KeyLimits(9, None, 100)
    assert keyring.limits_of("") == KeyLimits()


def test_beside_a_file_plain_keys_may_only_use(tmp_path: Path):
    keyring = ring(tmp_path, "")
    api = keyring.owner_of("sk-api") or ""
    keyring.check(api, "use")
    with pytest.raises(Forbidden, match="'admin'"):
        keyring.check(api, "admin")
    assert Keyring([], key_file="keys.toml").asks  # empty, so that nobody gets in


def test_an_expired_key_is_none(tmp_path: Path):
    keyring = ring(tmp_path, A + "expires = 2020-01-01\n")
    assert keyring.owner_of("sk-one") is None
    assert not keyring.knows(ONE[:16])
    assert not keyring.knows("someone")
    assert Keyring([]).knows("")


def test_what_is_damaged_leaves_the_keys(tmp_path: Path):
    keyring = ring(tmp_path, A)
    (tmp_path / "keys.toml").write_text("[a]\n")
    with pytest.raises(SetupError):
        keyring.read()
    assert keyring.owner_of("sk-one") == ONE[:16]


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    keyring = ring(tmp_path, A)
    assert caplog.text == ""
    (tmp_path / "keys.toml").chmod(0o644)
    keyring.read()
    assert "chmod 600" in caplog.text


def test_a_key_costs_the_same_among_many():
    def num_lines(num_keys: int) -> int:
        tables = (f'[k{n}]\nsha256 = "{digest_of(str(n)).hex()}"\n' for n in range(num_keys))
        text, num, before = "".join(tables), 0, sys.gettrace()

        def count(frame: object, event: str, arg: object) -> Any:
            nonlocal num
            num += 1
            return count

        sys.settrace(count)
        try:
            assert len(keys_in(text, "keys.toml")) == num_keys
        finally:
            sys.settrace(before)
        return num

    num_lines(1)  # what is made once
    assert num_lines(400) < 2.1 * num_lines(200)
