"""A conversation in the terminal, as LMDeploy's `main` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmserve_client.api_client import APIClient


def input_prompt() -> str:
    """Lines up to a blank one."""
    print("\ndouble enter to end input >>> ", end="", flush=True)
    return "\n".join(iter(input, ""))


def talk(client: APIClient, session_id: int) -> None:
    """`end` forgets the conversation; `exit`, or the end of input, leaves too."""
    while True:
        try:
            prompt = input_prompt()
        except EOFError:
            prompt = "exit"
        if prompt in ("exit", "end"):
            client.end_session(session_id)
            if prompt == "exit":
                return
            continue
        for part in client.chat(prompt, session_id, request_output_len=512, stream=True):
            print(part.text, end="", flush=True)
