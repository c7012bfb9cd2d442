"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from experiments.tasks.allocator import keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

def use(megabytes, blocks):
    taken = [library.malloc(megabytes << 20) for _ in range(blocks)]
    for block in taken:
        ctypes.memset(block, 1, megabytes << 20)
    held = resident()
    for block in taken:
        library.free(block)
    return held - resident()

if sys.argv[1] == "kept":
    keep_freed_memory()
use(30, 1)
print(use(25, 5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
@pytest.mark.slow
def test_freed_memory_is_kept():
    """Claim: by default freed memory returns to the system, and with the setting it stays (kB of 125 MB)."""
    returned = {}
    for choice in ("default", "kept"):
        command = [sys.executable, "-c", PROGRAM, choice]
        returned[choice] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert returned["default"] > 100_000
    assert returned["kept"] < 1_000
