"""Memory of processes, as the kernel counts it."""

from __future__ import annotations

import mmap
import os

from guerdon_server.bench import usage

_MAP_HUGETLB = 0x40000
_HUGE_BYTES = 2 << 20


def test_memory_in_huge_pages_counts() -> None:
    before = usage.tree_bytes(os.getpid())
    try:
        pages = mmap.mmap(-1, 8 * _HUGE_BYTES, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_HUGETLB)
    except OSError:  # the machine keeps none (vm.nr_hugepages), as most do: ordinary pages count as before
        pages = mmap.mmap(-1, 8 * _HUGE_BYTES, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    with pages:
        for offset in range(0, len(pages), mmap.PAGESIZE):
            pages[offset] = 1
        assert 8 * _HUGE_BYTES <= usage.tree_bytes(os.getpid()) - before < 12 * _HUGE_BYTES


def test_of_a_process_that_has_ended_there_is_nothing() -> None:
    assert usage._huge_bytes(2**22 + 1) == 0
