"""Where errors are told in the words of another API than OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping

from lmserve.edge.middlewares import ErrorBody
from lmserve.protocol.anthropic import errors as anthropic_errors
from lmserve.protocol.ollama import answers as ollama_answers

MESSAGES = "/v1/messages"
_OLLAMA = ("chat", "generate", "embed", "embeddings", "show", "tags", "ps", "version")

ERROR_BODIES: Mapping[str, ErrorBody] = {
    MESSAGES: anthropic_errors.error_body,
    f"{MESSAGES}/count_tokens": anthropic_errors.error_body,
    **{f"/api/{name}": ollama_answers.error_body for name in _OLLAMA},
}
