"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from experiments.tasks.allocator import keep_freed_memory
import torch

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(3):
    tensors = [torch.ones(2**22) for _ in range(16)]  # 256 MB
    held = resident()
    del tensors
print(held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_kept():
    """Claim: by default most of the freed memory returns to the system, and with the setting next to none."""
    returned = {}
    for choice in ("default", "kept"):
        command = [sys.executable, "-c", PROGRAM, choice]
        returned[choice] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert returned["default"] > 1e8
    assert returned["kept"] < 3e7
