"""`/v1/sessions/{id}/draft`: what is being typed, run ahead."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class DraftBody(Struct, kw_only=True):
    """What was typed: all of it as `text`, or what changed since the last call. `num_chars` in the
    answer says how much the server has."""

    text: Annotated[str | None, Meta(description="All that was typed.")] = None
    truncate: Annotated[
        int | None,
        Meta(description="So many characters (Unicode code points) of the draft stay."),
    ] = None
    append: Annotated[
        str | None, Meta(description="What follows them, or the draft as it was.")
    ] = None
    after: Annotated[
        str | None,
        Meta(
            description="The message that the turn will follow, or `root`. Default: the session's "
            "head. With another one than before, the draft begins anew."
        ),
    ] = None


class SessionDraft(Struct, kw_only=True):
    """What the server has of a draft."""

    object: Literal["session.draft"] = "session.draft"
    session: Annotated[str, Meta(description="Its id.")]
    num_chars: Annotated[int, Meta(description="Of the draft, as the server has it.")]
    num_tokens: Annotated[
        int,
        Meta(
            description="Of the prompt, run ahead or about to be: the line, and the draft less the "
            "word that is being typed."
        ),
    ]
    cached_tokens: Annotated[int, Meta(description="Of these, those that had been run before.")]
    state: Annotated[
        Literal["waiting", "running", "ready", "off"],
        Meta(
            description="`waiting`: for others' work to be done. `ready`: all of it is run. "
            "`off`: the server does not run it ahead."
        ),
    ]


class DraftDropped(Struct, kw_only=True):
    """The draft is forgotten."""

    object: Literal["session.draft.deleted"] = "session.draft.deleted"
    session: str
    deleted: Annotated[bool, Meta(description="Whether there was one.")]


class DraftReady(Struct, kw_only=True):
    """On a socket: all that was typed so far is run."""

    type: Literal["session.draft.ready"] = "session.draft.ready"
    session: Annotated[str, Meta(description="Its id.")]
    num_tokens: Annotated[int, Meta(description="That the turn will find, if so it is sent.")]
    cached_tokens: Annotated[int, Meta(description="Of these, those that had been run before.")]
