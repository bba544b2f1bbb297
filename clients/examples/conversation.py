"""A conversation that the server keeps: python conversation.py http://127.0.0.1:23333"""

import asyncio
import sys

from lmserve_client import Answer, Lmserve


async def show(answer: Answer) -> None:
    async for piece in answer:
        print(piece, end="", flush=True)
    print()


async def main(url: str) -> None:
    async with Lmserve(url) as client:
        session = await client.sessions.create(title="Capitals")
        first = await client.respond("What is the capital of France?", session=session)
        await show(first)
        second = await client.respond("And of Italy?", session=session, max_output_tokens=32)
        await show(second)
        print(f"{second.reused_tokens} tokens were not run again")
        for message in await client.sessions.messages(session):
            print(f"{message.id} {message.role}: {message.text}")


asyncio.run(main(sys.argv[1]))
