"""What is wrong with the edge's settings is told before the model is even looked for."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from lmserve.cli.main import cli


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--ssl"], "--ssl needs $SSL_CERTFILE"),
        (["--allow-origins", "page.example"], "write it as http://host:port"),
        (["--allow-origins", "*", "--allow-credentials"], "name the origins"),
        (["--server-name", "0.0.0.0", "--proxy-url", "http://127.0.0.1:1"], "--advertise-url"),
        (["--api-keys", "schlüssel"], "printable ASCII"),
    ],
)
def test_refused_in_one_line(flags: list[str], told: str) -> None:
    command = ["serve", "api_server", "/no/such/model", "--server-port", "0", *flags]
    env = {"SSL_CERTFILE": None, "SSL_KEYFILE": None}
    result = CliRunner().invoke(cli, command, env=env)
    assert result.exit_code == 1
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert "schl" not in result.stderr  # a key is never repeated
