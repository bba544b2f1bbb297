"""What a step did for one sequence: its tokens are appended, their KV is committed, and perhaps
it ends."""

from __future__ import annotations

from lmserve.engine.flight import Flight
from lmserve.engine.plan import NONE_LEFT, StepResult
from lmserve.engine.scheduler import Scheduler
from lmserve.engine.sequence import Sequence
from lmserve.messages import SequenceOutput, pack_ids


def advance(scheduler: Scheduler, flight: Flight, result: StepResult) -> SequenceOutput | None:
    """What the request is told of it."""
    row, seq = flight.row, flight.seq
    error = result.errors.get(seq.rid)
    if not flight.is_wanted:
        if error is not None:
            scheduler.cache.spoil(row)
        return None
    tokens = result.tokens.get(seq.rid, [])
    if error is None and row.sampling is not None and not tokens:
        error = "the runner chose no token"
    if error is not None:
        return _fail(scheduler, seq, error)
    is_first = not seq.reported
    output = told(seq, SequenceOutput(seq.rid, b""))
    has_news = seq.prompt_outputs is not None and seq.prompt_outputs.tell(output, row, result)
    if tokens:
        tokens = _append(seq, tokens, output)
        if output.token_ids and (logprobs := result.logprobs.get(seq.rid)) is not None:
            output.logprobs = logprobs[: len(tokens)]
        if scheduler.speculation is not None:
            scheduler.speculation.learn(seq, row, tokens)
    # The last token is still to be run. What was proposed beside those kept is written over.
    num_accepted = max(0, len(tokens) - 1)
    scheduler.cache.commit(seq, len(row.token_ids) - row.num_proposed + num_accepted)
    if not tokens:
        if seq.num_computed == len(seq.tokens):  # nothing is to be chosen
            output.finish = "length" if output.embedding is None else "stop"
        elif not is_first and not has_news:
            return None
    if output.finish is not None:
        scheduler.finish(seq)
    return output


def _fail(scheduler: Scheduler, seq: Sequence, error: str) -> SequenceOutput:
    scheduler.finish(seq, failed=True)
    if seq.grammar is not None and seq.grammar.error is not None:
        return told(seq, refused(seq, seq.grammar.error))
    if error == NONE_LEFT:
        return told(seq, refused(seq, error))
    return told(seq, SequenceOutput(seq.rid, b"", finish="error", error=error))


def _append(seq: Sequence, tokens: list[int], output: SequenceOutput) -> list[int]:
    """Those that are taken: up to the one that ends it."""
    num_before = len(seq.tokens)
    for token in tokens:
        seq.tokens.append(token)
        _judge(seq, token, output)
        if output.finish is not None:
            break
    taken = tokens[: len(seq.tokens) - num_before]
    output.token_ids = b"" if output.refused else pack_ids(taken)
    return taken


def _judge(seq: Sequence, token: int, output: SequenceOutput) -> None:
    """Whether the sequence ends with its last token."""
    if seq.grammar is not None:
        seq.grammar.take(token)
        if seq.grammar.error is not None:
            output.finish, output.error, output.refused = "error", seq.grammar.error, True
        elif seq.grammar.complete:
            output.finish = "stop"
            output.stop_token_id = token if token in seq.eos_ids else None
    elif token in seq.stop_ids and len(seq.tokens) > seq.min_len:
        output.finish, output.stop_token_id = "stop", token
    if output.finish is None and seq.is_full:
        output.finish = "length"


def refused(seq: Sequence, error: str) -> SequenceOutput:
    """It asks for what cannot be."""
    return SequenceOutput(seq.rid, b"", finish="error", error=error, refused=True)


def told(seq: Sequence, output: SequenceOutput) -> SequenceOutput:
    """A request's first output, perhaps without a token, tells how it came to run."""
    if not seq.reported:
        seq.reported = True
        output.num_cached_tokens = seq.num_cached or 0
        output.queue_s = seq.queue_s
    return output
