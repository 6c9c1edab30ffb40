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
        # Not exactly 8: what else the process has may shrink meanwhile (it did, by 6 kB).
        assert 7 * _HUGE_BYTES < usage.tree_bytes(os.getpid()) - before < 12 * _HUGE_BYTES


def test_huge_pages_are_found_in_what_the_kernel_tells() -> None:
    told = (
        "Rss:     2048 kB\nAnonHugePages:   4096 kB\nShared_Hugetlb:     1433600 kB\nPrivate_Hugetlb:       2048 kB\n"
    )
    assert usage.huge_bytes(told) == (1_433_600 + 2_048) * 1024


def test_of_a_process_that_has_ended_there_is_nothing() -> None:
    assert usage._huge_bytes(2**22 + 1) == 0
