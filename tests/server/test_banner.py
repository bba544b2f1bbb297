"""What the terminal shows at the start."""

from __future__ import annotations

import msgspec

from lmserve.bridge.fake import FakeEngine
from lmserve.server.banner import ready_lines


async def test_it_says_where_to_go_and_what_answers_on_what() -> None:
    fake = FakeEngine()
    await fake.start()
    try:
        assert fake.info is not None
        info = msgspec.structs.replace(
            fake.info, num_parameters=134_500_000, device="cpu", dtype="float32",
            num_blocks=100, block_size=16, kv_cache_bytes=3 << 20,
        )  # fmt: skip
        text = ready_lines("http://127.0.0.1:1", "tiny", info, 2.04)
        assert text.startswith("ready after 2.0 s\n")
        for part in (
            "http://127.0.0.1:1/chat", "http://127.0.0.1:1/v1", " tiny\n", "134 million",
            "cpu, computing in float32", "1,600 tokens, 3 MiB", "Ctrl-C",
        ):  # fmt: skip
            assert part in text
        assert "KV" not in ready_lines("http://127.0.0.1:1", None, fake.info, 2.0)
    finally:
        await fake.close()
