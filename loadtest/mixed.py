"""All of them together, by their weights: think time, users who leave, some nonsense."""

from __future__ import annotations

from chat import ChatUser
from interactive import InteractiveUser
from leaving import LeavingUser
from nonsense import NonsenseUser
from sockets import SocketUser
from sse import SseUser

__all__ = ["ChatUser", "InteractiveUser", "LeavingUser", "NonsenseUser", "SocketUser", "SseUser"]
