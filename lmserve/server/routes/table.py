"""Every route there is: what is not in this table is neither served nor documented."""

from __future__ import annotations

from lmserve.server.routes import (
    anthropic,
    batches,
    chat,
    completions,
    control,
    drafts,
    embeddings,
    files,
    interactive,
    models,
    ollama,
    ollama_embed,
    ollama_models,
    operation,
    pages,
    responses,
    scoring,
    sessions,
    streams,
    tokenize,
    tokens,
    turns,
)
from lmserve.server.routes.route import Route
from lmserve.server.socket import route as socket

TABLE: tuple[Route, ...] = (
    *models.ROUTES,
    *chat.ROUTES,
    *completions.ROUTES,
    *embeddings.ROUTES,
    *scoring.ROUTES,
    *files.ROUTES,
    *batches.ROUTES,
    *anthropic.ROUTES,
    *interactive.ROUTES,
    *socket.ROUTES,
    *responses.ROUTES,
    *sessions.ROUTES,
    *turns.ROUTES,
    *drafts.ROUTES,
    *streams.ROUTES,
    *tokens.ROUTES,
    *tokenize.ROUTES,
    *ollama.ROUTES,
    *ollama_embed.ROUTES,
    *ollama_models.ROUTES,
    *control.ROUTES,
    *operation.ROUTES,
    *pages.ROUTES,
)
