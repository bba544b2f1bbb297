"""Every error lmserve raises on purpose, as a tree of situations.

    LmserveError
    ├── RequestError            400  the caller's mistake; says which field and what to do
    │   ├── InvalidField        400  a field has a wrong type, range or combination
    │   ├── Unsatisfiable       400  what is asked for leaves nothing to say, as shows late
    │   ├── PromptTooLong       400  the prompt does not fit the context
    │   │   └── SessionFull     400  the session and the prompt leave no room for an answer
    │   ├── BodyTooLarge        413  the body is over the limit
    │   │   └── FilesFull       413  no room is left for files
    │   ├── HeadTooLarge        431  the request's line and headers are over the limit
    │   ├── TooSlow             408  the request did not come in its time
    │   ├── NotFound            404  no route has this path
    │   ├── MethodNotAllowed    405  the route exists, but not for this method
    │   ├── ModelNotFound       404  the model named is not served here
    │   ├── SessionNotFound     404  there is no such session, or it was forgotten
    │   │   └── MessageNotFound 404  the session has no such message
    │   ├── AnswerNotFound      404  there is no such response
    │   │   └── PreviousNotFound 404  there is no such response to follow
    │   ├── StreamNotFound      404  there is no such stream, or it ended too long ago
    │   ├── FileMissing         404  there is no such file, or it expired
    │   ├── BatchNotFound       404  there is no such batch
    │   ├── EventsGone          410  the stream no longer has the events asked for
    │   ├── Unauthorized        401  no key, or a wrong one
    │   ├── Forbidden           403  a known key, which may not do this
    │   ├── CrossSite           403  another web page makes its visitor's browser call
    │   ├── WrongHost           403  the call is for another name than this server's
    │   ├── SessionBusy         409  the session is being answered, or was ended meanwhile
    │   ├── SessionExists       409  a session of this id exists
    │   ├── AnswerConflict      409  the response is not in a state that allows this
    │   ├── BatchConflict       409  the batch, or one that reads the file, does not allow this
    │   ├── KeyReused           409  an idempotency key came with another request
    │   ├── SessionLost         410  the session was forgotten; told once, then it begins anew
    │   └── NotEnabled          400  the server was started without the flag for this
    ├── Overloaded              429  a limit is reached; `retry_after_s` says when to come back
    │   ├── RateLimited         429  one of the API key's own
    │   ├── TooManyConnections  503  of connections or WebSockets there are as many as may be
    │   ├── NoThread            503  the system gives no more threads
    │   └── TextTooSlow         429  template, tokens or grammar took longer than they may
    ├── NotServed               501  the server was started without what this route needs
    ├── DeadlineExceeded        504  the answer could not begin, or did not, in its time
    ├── EngineUnavailable       503  the engine is loading, restarting or gone
    ├── StoreError              500  what should be kept could not be written or read
    ├── EngineError             500  the engine failed this request, and only this one
    │   └── EngineDied          500  the engine process died while the request ran
    └── SetupError                   the command cannot start; one line, exit code 1
        ├── ModelError               a model is missing, damaged or not supported
        └── SettingsError            a setting or flag is unknown or has a wrong value

`status`, `type` and `code` are the wire form (OpenAI's vocabulary); one middleware writes it.
`assert` is for bugs only.
"""

from __future__ import annotations

from typing import ClassVar


class LmserveError(Exception):
    """Base of everything lmserve raises on purpose."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(LmserveError):
    """The caller's mistake."""

    status = 400
    type = "invalid_request_error"


class InvalidField(RequestError):
    """A field has a wrong type, a value out of range, or contradicts another."""

    code = "invalid_value"


class Unsatisfiable(RequestError):
    """What the request allows, bans and asks for leaves nothing to say, which shows only while
    the engine runs it."""

    code = "unsatisfiable"


class PromptTooLong(RequestError):
    """The prompt leaves no room for an answer in the context."""

    code = "context_length_exceeded"

    def __init__(self, message: str, *, param: str | None = None, num_tokens: int = 0):
        super().__init__(message, param=param)
        self.num_tokens = num_tokens  # the prompt's length, where it was counted


class SessionFull(PromptTooLong):
    """The session and the new prompt leave no room for an answer."""

    def __init__(self, message: str, *, num_tokens: int = 0, history_tokens: int = 0):
        super().__init__(message, param="prompt", num_tokens=num_tokens)
        self.history_tokens = history_tokens  # of `num_tokens`, in the session already


class BodyTooLarge(RequestError):
    """The request body is larger than the server reads."""

    status = 413
    code = "body_too_large"


class FilesFull(BodyTooLarge):
    """The files kept take all the room that they may."""

    code = "files_full"


class HeadTooLarge(RequestError):
    """The request's line and headers are longer than the server reads."""

    status = 431
    code = "headers_too_large"


class TooSlow(RequestError):
    """The request's head, or its body, did not come in its time."""

    status = 408
    type = "timeout_error"
    code = "request_timeout"


class NotFound(RequestError):
    """No route has this path."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(RequestError):
    """The model named is not served here."""

    status = 404
    type = "not_found_error"
    code = "model_not_found"


class SessionNotFound(RequestError):
    """This owner has no such session; where it was forgotten, the message says why."""

    status = 404
    type = "not_found_error"
    code = "session_not_found"


class MessageNotFound(SessionNotFound):
    """The session has no such message."""

    code = "message_not_found"


class AnswerNotFound(RequestError):
    """This owner has no such response."""

    status = 404
    type = "not_found_error"
    code = "response_not_found"


class PreviousNotFound(AnswerNotFound):
    """This owner has no such response, which another was to follow."""

    code = "previous_response_not_found"


class StreamNotFound(RequestError):
    """This owner has no such stream, or it ended too long ago."""

    status = 404
    type = "not_found_error"
    code = "stream_not_found"


class FileMissing(RequestError):
    """This owner has no such file, or it expired."""

    status = 404
    type = "not_found_error"
    code = "file_not_found"


class BatchNotFound(RequestError):
    """This owner has no such batch."""

    status = 404
    type = "not_found_error"
    code = "batch_not_found"


class BatchConflict(RequestError):
    """The batch has ended, or the file is what a batch reads."""

    status = 409
    code = "batch_conflict"


class EventsGone(RequestError):
    """The stream no longer has the events that were asked for: read the answer whole."""

    status = 410
    code = "events_gone"


class AnswerConflict(RequestError):
    """The response is not in a state that allows this: still being made, or ended already."""

    status = 409
    code = "response_conflict"


class KeyReused(RequestError):
    """An idempotency key came with another request before."""

    status = 409
    code = "idempotency_key_reused"


class Unauthorized(RequestError):
    """The call brings no API key, or one that is not known."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(RequestError):
    """The API key is known, and may not do this."""

    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class CrossSite(RequestError):
    """Another web page makes its visitor's browser call."""

    status = 403
    code = "cross_site"


class WrongHost(RequestError):
    """The call names another host: its page's own name may have been made to lead here."""

    status = 403
    code = "host_not_allowed"


class SessionBusy(RequestError):
    """The session is being answered and the settings say not to wait, or it ended meanwhile."""

    status = 409
    code = "session_busy"


class SessionExists(RequestError):
    """A new session cannot have this id: there is one."""

    status = 409
    code = "session_exists"


class SessionLost(RequestError):
    """The session was forgotten: too old, or too many others. Told once."""

    status = 410
    code = "session_lost"


class NotEnabled(RequestError):
    """The server was started without the flag that allows this."""

    code = "not_enabled"


class Overloaded(LmserveError):
    """A limit is reached; the same request may pass later."""

    status = 429
    type = "overloaded_error"
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """A limit of the API key itself is reached: `limit` is a word for which."""

    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, limit: str = "key", *, retry_after_s: int = 1):
        super().__init__(message, retry_after_s=retry_after_s)
        self.limit = limit


class TooManyConnections(Overloaded):
    """Of connections, or WebSockets, there are as many as may be."""

    status = 503
    code = "too_many_connections"


class NoThread(Overloaded):
    """The request takes a thread, and the system gives no more."""

    status = 503


class TextTooSlow(Overloaded):
    """A request's template, tokens or grammar took longer than they may."""

    code = "text_timeout"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int = 1):
        super().__init__(message, retry_after_s=retry_after_s)
        self.param = param


class NotServed(LmserveError):
    """The server was started without what this route needs, told as LMDeploy tells it."""

    status = 501
    code = "not_enabled"


class DeadlineExceeded(LmserveError):
    """The answer could not begin, or did not, in the time that its client gave it."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int = 1):
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class EngineUnavailable(LmserveError):
    """The engine is loading, restarting or stopped, or did not answer in time."""

    status = 503
    code = "engine_unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 1):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreError(LmserveError):
    """What should be kept could not be written or read: the disk is full, damaged, read-only."""

    code = "store_error"


class EngineError(LmserveError):
    """The engine failed this request, and only this one."""

    code = "engine_error"


class EngineDied(EngineError):
    """The engine process died while this request ran in it."""

    code = "engine_died"


class SetupError(LmserveError):
    """The command cannot start: the message is one line with the remedy; exit code 1."""


class ModelError(SetupError):
    """A model is missing, damaged or not supported."""


class SettingsError(SetupError):
    """A setting, environment variable or flag is unknown or has a wrong value."""
