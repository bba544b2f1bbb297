from __future__ import annotations

import pytest

from lmserve.engine.cache.blocks import BlockCounts, BlockPool, IntegrityError


def test_blocks_move_between_the_four_owners_and_always_add_up() -> None:
    pool = BlockPool(3)
    block = pool.allocate()
    assert block is not None
    assert pool.counts() == BlockCounts(free=2, cached=0, pinned=0, held=1, total=3)
    pool.keep(block)
    pool.release(block)
    assert pool.counts() == BlockCounts(free=2, cached=1, pinned=0, held=0, total=3)
    pool.pin(block)
    assert pool.counts() == BlockCounts(free=2, cached=0, pinned=1, held=0, total=3)
    pool.acquire(block)
    assert pool.counts() == BlockCounts(free=2, cached=0, pinned=0, held=1, total=3)
    pool.release(block)
    pool.unpin(block)
    assert pool.counts() == BlockCounts(free=2, cached=1, pinned=0, held=0, total=3)
    pool.drop(block)
    assert pool.counts() == BlockCounts(free=3, cached=0, pinned=0, held=0, total=3)
    pool.check()


def test_a_released_block_outside_the_tree_is_free_at_once() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    assert block is not None and pool.allocate() is None
    pool.release(block)
    assert pool.allocate() == block


def test_a_dropped_block_stays_with_its_holder() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    assert block is not None
    pool.keep(block)
    pool.drop(block)
    assert pool.counts().held == 1
    pool.check()
    pool.release(block)
    assert pool.counts().free == 1


def test_check_finds_a_block_released_twice() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    assert block is not None
    pool.release(block)
    pool.release(block)
    with pytest.raises(IntegrityError, match="references"):
        pool.check()


def test_check_finds_a_shared_block_that_can_be_written() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    assert block is not None
    pool.acquire(block)
    with pytest.raises(IntegrityError, match="outside the tree"):
        pool.check()


def test_check_finds_counters_that_drifted() -> None:
    pool = BlockPool(2)
    pool.num_held = 1
    with pytest.raises(IntegrityError, match="counted"):
        pool.check()
