"""What only a distributor has to say. Tree and wire form are those of `lmserve.errors`."""

from __future__ import annotations

from lmserve.errors import EngineError, LmserveError, RequestError


class NodeNotFound(RequestError):
    """No node has this URL."""

    status = 404
    code = "node_not_found"


class TooManyNodes(RequestError):
    """No other can be added."""

    status = 409
    code = "too_many_nodes"


class NodeUnavailable(LmserveError):
    """No node can answer now: there is none, or none that lives, or it just died."""

    status = 503
    code = "node_unavailable"
    retry_after_s = 2


class SessionAway(NodeUnavailable):
    """The node that keeps this session does not answer."""

    code = "session_unavailable"
    retry_after_s = 5


class NodeLost(EngineError):
    """The node was lost while it sent its answer."""

    status = 502
    code = "node_lost"
