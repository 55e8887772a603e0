"""Keeps freed memory in the process, so that the next step need not ask the system for it again (Linux with glibc).

glibc gives a large block back to the system as soon as it is freed. A training step frees and asks for the same blocks
again and again, and each page that comes back costs a fault: up to 40 % of a step on CPU. The price is that the process
keeps its peak of memory until it ends. Other allocators, preloaded by the user, are left alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

KEPT = (1 << 31) - 1
"""Bytes of free memory at the end of the heap from which glibc would trim it: the most that it takes."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_AHEAD = 1 << 26  # bytes asked for beyond what is needed, so that a growing heap asks seldom


def keep_freed_memory() -> str | None:
    """Lets glibc keep what is freed, from now on; returns None, or why it was left as it is."""
    if not sys.platform.startswith("linux"):
        return f"not offered on {sys.platform}"
    preloaded = os.environ.get("LD_PRELOAD", "")
    if any(name in preloaded for name in ("tcmalloc", "jemalloc", "mimalloc")):
        return "another allocator is preloaded"
    if not is_glibc():
        return "the C library is not glibc"
    library = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, KEPT), (_TOP_PAD, _AHEAD))
    if not all(library.mallopt(name, value) for name, value in settings):
        return "glibc refused"
    return None


def is_glibc() -> bool:
    """Tells whether this process uses the GNU C library."""
    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
