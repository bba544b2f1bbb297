"""Two turns that the server keeps, with asyncio: python interactive.py http://127.0.0.1:23333"""

import asyncio
import sys

from lmserve_client import AsyncAPIClient

SESSION_ID = 1


async def main(url: str) -> None:
    async with AsyncAPIClient(url) as api_client:
        for prompt in ("hi", "What did I say?"):
            async for text, _, _ in api_client.chat(prompt, SESSION_ID, 32, stream=True):
                print(text, end="", flush=True)
            print()
        await api_client.end_session(SESSION_ID)


asyncio.run(main(sys.argv[1]))
