"""What is asked of a server: how many users, how long their prompts and answers are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    users: int = 1  # each sends its next request when its last has ended
    num_requests: int = 8
    prompt_tokens: int = 128  # a request, with what the template adds; beside the shared prefix
    shared_prefix_tokens: int = 0  # the same system message before every prompt
    max_tokens: int = 128
    rate: float = 0.0  # over 0: so many requests a second begin, whether or not others ended

    @property
    def title(self) -> str:
        who = f"{self.rate:g} requests/s" if self.rate else f"{self.users} users"
        if self.shared_prefix_tokens:
            asked = f"shared {self.shared_prefix_tokens:,} + {self.prompt_tokens}"
        else:
            asked = f"{self.prompt_tokens:,}"
        return f"{who.replace('1 users', '1 user')}, {asked}/{self.max_tokens}"


NAMED = {
    work.name: work
    for work in (
        Workload("a", users=1, num_requests=6),
        Workload("b", users=8, num_requests=24),
        Workload("c", users=32, num_requests=64),
        Workload("d", users=8, num_requests=16, prompt_tokens=1024, max_tokens=64),
        Workload(
            "e",
            users=8,
            num_requests=32,
            prompt_tokens=32,
            shared_prefix_tokens=1000,
            max_tokens=64,
        ),
    )
}
