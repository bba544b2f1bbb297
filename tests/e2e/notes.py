"""What clients were told, as they noted it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

ENDS = ("response.completed", "response.incomplete", "response.failed")


@dataclass
class Told:
    """One response, as its client knows it."""

    id: str
    session: str
    message: str
    inputs: list[str]
    events: list[tuple[float, bytes]] = field(default_factory=list)  # when it came, and what
    final: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        return said(data for _, data in self.events)

    def before(self, moment: float) -> list[bytes]:
        return [data for came, data in self.events if came <= moment]


def said(events: Iterable[bytes]) -> str:
    """The text of these events."""
    parsed = map(orjson.loads, events)
    return "".join(e["delta"] for e in parsed if e["type"] == "response.output_text.delta")


@dataclass
class Notes:
    """All that was acknowledged, to all clients together."""

    responses: dict[str, Told] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)  # session → message id → text
    steers: dict[str, set[str]] = field(default_factory=dict)  # session → texts
    copies: dict[str, list[str]] = field(default_factory=dict)  # fork → the texts of its line
    pairs: list[tuple[str, str]] = field(default_factory=list)  # of /v1/chat/interactive

    def began(self, response: dict[str, Any], text: str | None) -> Told:
        told = Told(
            response["id"], response["session"], response["message_id"],
            response["input_message_ids"],
        )  # fmt: skip
        self.responses[told.id] = told
        texts = self.texts.setdefault(told.session, {})
        if text is not None:
            (texts[told.inputs[0]],) = (text,)
        return told

    def whole(self, response: dict[str, Any], text: str | None) -> Told:
        told = self.began(response, text)
        told.final = response
        return told
