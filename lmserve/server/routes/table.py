"""Every route there is: what is not in this table is neither served nor documented."""

from __future__ import annotations

from lmserve.server.routes import (
    chat,
    completions,
    control,
    interactive,
    models,
    operation,
    pages,
    sessions,
    tokens,
    turns,
)
from lmserve.server.routes.route import Route

TABLE: tuple[Route, ...] = (
    *models.ROUTES,
    *chat.ROUTES,
    *completions.ROUTES,
    *interactive.ROUTES,
    *sessions.ROUTES,
    *turns.ROUTES,
    *tokens.ROUTES,
    *control.ROUTES,
    *operation.ROUTES,
    *pages.ROUTES,
)
