"""Where ids say that they are from."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lmserve.ids import Ids, is_node_id, node_of
from lmserve.service.node_id import NAME, node_id


def test_it_is_made_once(tmp_path: Path) -> None:
    made = node_id(tmp_path)
    assert is_node_id(made)
    assert node_id(tmp_path) == made
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_without_a_folder_it_is_another_each_time() -> None:
    assert node_id(None) != node_id(None)


@pytest.mark.parametrize("odd", [b"", b"0123", b"0123ABCD", b"\xff", b"0123abcd ef"])
def test_what_is_none_is_replaced(tmp_path: Path, odd: bytes) -> None:
    (tmp_path / NAME).write_bytes(odd)
    made = node_id(tmp_path)
    assert is_node_id(made)
    assert node_id(tmp_path) == made


def test_a_full_disk_keeps_no_server_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).mkdir()  # so that it can be neither read nor replaced
    assert is_node_id(node_id(tmp_path))
    assert "cannot be written" in caplog.text


def test_ids_say_it() -> None:
    ids = Ids()
    for prefix in ("resp_", "sess_", "strm_"):
        id = ids.new(prefix)
        assert id.startswith(prefix)
        assert len(id) == len(prefix) + 32
        assert node_of(id) == ids.node
        assert ids.new(prefix) != id
    for odd in ("", "resp_", ids.new("other_"), ids.new("resp_") + "0", "mine"):
        assert node_of(odd) is None
