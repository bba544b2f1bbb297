"""Changed copies of a seed, the same ones every time: what the default tests send to a target."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63)
NUM_CHANGES = 4  # of one copy, at most


def mutants(seeds: Sequence[bytes], words: Sequence[bytes], num: int) -> Iterator[bytes]:
    """The seeds themselves, then `num` copies with changes."""
    yield from seeds
    chance = random.Random(num)
    for _ in range(num):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, NUM_CHANGES)):
            _change(data, chance, seeds, words)
        yield bytes(data)


def _change(
    data: bytearray, chance: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]
) -> None:
    at = chance.randint(0, len(data))
    match chance.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + chance.randint(1, 16)]
        case 3:
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(NUMBERS) % 256**size
            data[at : at + size] = number.to_bytes(size, "little")
        case 4:
            other = chance.choice(seeds)
            begin = chance.randint(0, len(other))
            data[at:at] = other[begin : begin + chance.randint(1, 64)]
        case 5 if words:
            data[at:at] = chance.choice(words)
        case _:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
