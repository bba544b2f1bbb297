"""What is asked of an answer that is being made."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.responses.input import ResponseInputItem, input_messages


class ResponseSteer(Struct, kw_only=True):
    """What is said while the answer is being made."""

    input: Annotated[
        str | list[ResponseInputItem],
        Meta(description="What the user says; or items of users and tools, oldest first."),
    ]

    def messages(self) -> list[dict[str, Any]]:
        if not self.input:
            raise InvalidField("input is empty: say something", param="input")
        return input_messages(self.input, steering=True)


class ResponseUpdate(Struct, kw_only=True):
    """What is to change of a running answer; the rest stays."""

    max_output_tokens: Annotated[int | None, Meta(description="Of the whole answer.")] = None
    temperature: float | None = None
    stop: Annotated[
        str | list[str] | None, Meta(description="In place of those it had; `[]`: none.")
    ] = None

    def changes(self) -> dict[str, Any]:
        """By the service's names. Raises InvalidField where there is none."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        given = {
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "stop": None if stop is None else tuple(stop),
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if not changes:
            raise InvalidField("give max_output_tokens, temperature or stop: what is to change")
        return changes

    def told(self) -> dict[str, Any]:
        """What of it the response tells, as `ResponseFields.told`."""
        told = {"max_output_tokens": self.max_output_tokens, "temperature": self.temperature}
        return {name: value for name, value in told.items() if value is not None}
