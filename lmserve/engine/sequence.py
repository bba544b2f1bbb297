"""One request inside the engine: its tokens, its blocks, and how far it is."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from lmserve.engine.prompt_outputs import PromptOutputs
from lmserve.engine.sampling.rules import Rules
from lmserve.engine.thinking import Reasoning
from lmserve.messages import LOWEST, NOBODY, Tenant

if TYPE_CHECKING:
    from lmserve.engine.cache.prefix import Node
    from lmserve.engine.grammars import Constraint
    from lmserve.engine.shares import Share
    from lmserve.engine.speculation.speculation import Guesses
    from lmserve.sampling import SamplingParams


class State(Enum):
    WAITING = auto()  # never run
    RUNNING = auto()  # has blocks, gets rows
    PREEMPTED = auto()  # lost its blocks, waits to be run again
    FINISHED = auto()


ALLOWED: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.FINISHED}),
    State.RUNNING: frozenset({State.PREEMPTED, State.FINISHED}),
    State.PREEMPTED: frozenset({State.RUNNING, State.FINISHED}),
    State.FINISHED: frozenset(),
}


class Sequence:
    """Owned by the scheduler. The cache manager alone changes `blocks` and what follows it."""

    __slots__ = (
        "arrival", "banned_ids", "blocks", "eos_ids", "grammar", "guesses", "max_len",
        "max_model_len", "min_len", "node", "num_cached", "num_computed",
        "num_launched", "num_lost", "num_prompt_tokens", "num_shared", "num_unread", "priority",
        "prompt_outputs", "queue_s", "reasoning", "reported", "rid", "rules",
        "sampling", "share", "state", "stop_ids", "submitted_s", "tenant", "tokens",
    )  # fmt: skip
    share: Share  # its tenant's, set by the scheduler

    def __init__(
        self,
        rid: int,
        prompt: list[int],
        sampling: SamplingParams,
        *,
        eos_ids: frozenset[int] = frozenset(),
        max_model_len: int = 1 << 30,
        priority: int = 0,
        tenant: Tenant = NOBODY,
        submitted_s: float = 0.0,
    ):
        self.rid = rid
        self.tokens = prompt  # all tokens, prompt first; grows in place, rows refer to it
        self.num_prompt_tokens = len(prompt)
        self.eos_ids = eos_ids
        self.max_model_len = max_model_len
        self.priority = priority  # lower runs first
        self.tenant = tenant
        self.arrival = 0  # set by the scheduler
        self.submitted_s = submitted_s  # on the clock that `schedule` is told
        self.queue_s: float | None = None  # from there to the first admission
        self.state = State.WAITING
        self.prompt_outputs = PromptOutputs.of(sampling, len(prompt))
        self.grammar: Constraint | None = None  # says what may come, and when it ends
        self.guesses: Guesses | None = None  # of what comes next, where it speculates
        self.use(sampling)
        self.num_cached: int | None = None  # prompt tokens found when first run
        self.reported = False  # an output told num_cached and queue_s

        self.blocks: list[int] = []  # block table, in order
        self.num_computed = 0  # tokens whose KV is in the blocks
        self.num_shared = 0  # leading blocks that the tree knows the tokens of
        self.node: Node | None = None  # the tree's node of the last of those

        # of steps that were launched and not committed yet
        self.num_launched = 0  # tokens whose KV they compute
        self.num_unread = 0  # tokens they draw
        self.num_lost = 0  # how often it lost its blocks: what was launched before counts no more

    def use(self, sampling: SamplingParams) -> None:
        """Goes on with these settings."""
        self.sampling = sampling
        max_tokens = sampling.max_tokens if sampling.pooling is None else 0
        self.max_len = min(self.num_prompt_tokens + max_tokens, self.max_model_len)
        self.min_len = self.num_prompt_tokens + sampling.min_tokens
        stop_ids = frozenset(sampling.stop_token_ids)
        self.banned_ids = tuple(sorted(stop_ids | self.eos_ids))  # while shorter than min_len
        self.stop_ids = stop_ids if sampling.ignore_eos else stop_ids | self.eos_ids
        self.rules = Rules.of(sampling)
        self.reasoning = Reasoning.of(sampling, self.num_prompt_tokens)

    def lose(self) -> None:
        """Its blocks are gone, and what is being computed in them."""
        self.num_launched = self.num_unread = 0
        self.num_lost += 1

    def to(self, state: State) -> None:
        """Changes the state; the table above says which changes there are."""
        assert state in ALLOWED[self.state], f"sequence {self.rid}: {self.state} to {state}"
        self.state = state

    @property
    def is_draft(self) -> bool:
        """Everybody else comes first, whatever that costs it."""
        return self.priority >= LOWEST

    def bans(self, num_tokens: int) -> tuple[int, ...]:
        """End and stop tokens, where the answer must not end after so many."""
        if self.grammar is not None:
            return () if self.grammar.active else self.banned_ids
        return self.banned_ids if num_tokens < self.min_len else ()

    @property
    def is_full(self) -> bool:
        """As long as it may be."""
        return len(self.tokens) >= self.max_len

    @property
    def num_matchable(self) -> int:
        """First tokens that the cache may know: the last is run, for its logits choose the next,
        and those of which something is still to be told."""
        most = len(self.tokens) - 1
        return most if self.prompt_outputs is None else min(most, self.prompt_outputs.num_matchable)

    @property
    def num_behind(self) -> int:
        """Tokens still to be run: 1 is a decode, more a prompt, a chunk or a resume."""
        return len(self.tokens) + self.num_unread - self.start

    @property
    def start(self) -> int:
        """The first of those."""
        return self.num_computed + self.num_launched

    @property
    def next_is_last(self) -> bool:
        """A token that is not read yet fills it."""
        return bool(self.num_unread) and len(self.tokens) + self.num_unread >= self.max_len
