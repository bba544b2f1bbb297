"""Where a client goes, and how long it is patient."""

from __future__ import annotations

from dataclasses import dataclass
from ssl import CERT_NONE, SSLContext, create_default_context
from typing import Union

Verify = Union[bool, SSLContext]


@dataclass(frozen=True)
class Target:
    url: str
    api_key: str | None
    connect_timeout_s: float
    read_timeout_s: float | None
    reconnect_within_s: float  # an outage longer than this is told
    silence_s: float  # a WebSocket on which nothing is heard for twice this long is lost
    verify: Verify

    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    @property
    def socket_url(self) -> str:
        return f"ws{self.url[len('http') :]}/v1/responses"

    def ssl(self) -> SSLContext | None:
        """Of a `wss:` connection; None: as usual, or none at all."""
        if isinstance(self.verify, SSLContext):
            return self.verify if self.url.startswith("https:") else None
        if self.verify or not self.url.startswith("https:"):
            return None
        context = create_default_context()
        context.check_hostname = False
        context.verify_mode = CERT_NONE
        return context
