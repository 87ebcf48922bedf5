"""Keep freed memory in the process while calls are timed, for every model alike.

glibc hands freed memory back to the system, and the next call faults it in again, page by page. When it does so depends
on the largest block that was ever freed (mallopt(3), "dynamic mmap threshold"), so on what ran before in the process:
the same model can differ by a third from process to process. Needs no PyTorch.
"""

import ctypes
import os

# malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> str:
    """Tell glibc to take no block by mmap and to give nothing back; return what was done, for the record.

    Call it before anything large is allocated: what was taken by mmap is given back all the same. Another allocator is
    left as it is, and named if it was preloaded.
    """
    if preloaded := os.environ.get("LD_PRELOAD"):
        return f"left as it is (LD_PRELOAD={preloaded})"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl; no such library; Windows
        return "left as it is (not glibc's: no mallopt)"
    done = mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
    return "glibc: M_MMAP_MAX=0, M_TRIM_THRESHOLD=INT_MAX" if done else "left as it is (mallopt refused)"
