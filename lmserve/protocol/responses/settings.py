"""How an answer that is kept is to be made: its form, its thoughts, what is told with it."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from lmserve.errors import InvalidField
from lmserve.protocol.openai.chat import Effort
from lmserve.protocol.structured import JsonSchemaFormat, structure_of_schema
from lmserve.types import Structure

LOGPROBS = "message.output_text.logprobs"


class ResponseTextFormat(Struct, kw_only=True, omit_defaults=True):
    """The form of the answer."""

    type: Annotated[str, Meta(description="`text`, `json_object` or `json_schema`.")]
    name: Annotated[str | None, Meta(description="Of the schema: told back, not used.")] = None
    description: Annotated[str | None, Meta(description="Told back, not used.")] = None
    schema_: Annotated[
        dict[str, Any] | bool | None, Meta(description="With `json_schema`: the schema.")
    ] = field(default=None, name="schema")
    strict: Annotated[
        bool | None, Meta(description="Told back: the answer always obeys the schema.")
    ] = None

    def structure(self) -> Structure | None:
        """Raises InvalidField."""
        match self.type:
            case "text":
                return None
            case "json_object":
                return Structure("json_object", None, "text.format")
            case "json_schema":
                if self.schema_ is None:
                    raise InvalidField(
                        "text.format.schema is missing: it goes with the type json_schema",
                        param="text.format.schema",
                    )
                given = JsonSchemaFormat(schema_=self.schema_)
                return structure_of_schema(given, "text.format")
            case _:
                raise InvalidField(
                    f"text.format.type is {self.type[:50]!r}: it must be text, json_object or "
                    "json_schema",
                    param="text.format.type",
                )


class ResponseText(Struct, kw_only=True, omit_defaults=True):
    """How the answer is written."""

    format: ResponseTextFormat | None = None
    verbosity: Annotated[str | None, Meta(description="Told back, not used.")] = None


class ResponseReasoning(Struct, kw_only=True):
    """How the model thinks."""

    effort: Annotated[
        Effort | None,
        Meta(
            description="Given to the chat template; `none` is `enable_thinking` false. Null: the "
            "template's own."
        ),
    ] = None
    summary: Annotated[
        str | None, Meta(description="Told back: no summary is made, the thoughts are told.")
    ] = None
    generate_summary: Annotated[str | None, Meta(description="Older name of `summary`.")] = None
    context: Annotated[str | None, Meta(description="Told back: the template decides.")] = None
    max_tokens: Annotated[
        int | None, Meta(description="Ours. Longest reasoning in tokens: then its end is forced.")
    ] = None

    def template_kwargs(self) -> dict[str, Any]:
        if self.effort is None:
            return {}
        kwargs: dict[str, Any] = {"reasoning_effort": self.effort}
        return kwargs | ({"enable_thinking": False} if self.effort == "none" else {})


class ResponseConversation(Struct, kw_only=True):
    """A session, as OpenAI's clients name it."""

    id: str
