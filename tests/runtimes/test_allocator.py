"""Freed memory stays in the process, so that calls do not fault it in again."""

import os
import subprocess
import sys

import pytest

# Page faults of ten blocks of 24 MB, taken and given back in turn: 5,859 pages each.
PROGRAM = """
import ctypes, resource, sys
from dinoquant.runtimes.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else "default")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def touch(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
touch(24_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch(48_000_000 if _ == 5 else 24_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, how]
    output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    done, count = output.splitlines()
    return done, int(count)


def test_freed_memory_is_not_faulted_in_again() -> None:
    done, kept = faults("kept")
    if not done.startswith("glibc"):
        pytest.skip(done)
    default = faults("default")[1]
    # 48 MB are new once, whatever is kept; by default, that block goes through mmap and back.
    assert kept < 6500 < default
