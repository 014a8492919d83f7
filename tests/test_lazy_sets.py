"""Large sets that are read sample by sample stay on their disk: a call holds no more than the batches in flight.

What is counted is the memory in use by the C library's count, looked at while samples are read. The process's own peak would count what is
free as well: glibc before 2.38 may fail to use a freed aligned block again (its bug 14581), and now and then a gigabyte of those piled up.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap

import pytest

LIMIT = 100  # MB beside what a run over one batch takes
AUDIT = """
import ctypes
import torch
from torch.utils.data import DataLoader, Dataset
import fastforget as ff

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks mapped usmblks fsmblks used free keepcost".split()]
counts = ctypes.CDLL(None).mallinfo2
counts.restype = Counts
most = 0.0
def look():
    global most
    now = counts()
    most = max(most, (now.used + now.mapped) / 2**20)

class Lazy(Dataset):
    labels = (0, 1, 2)
    def __init__(self, size, first): self.size, self.first = size, first
    def __len__(self): return self.size
    def __getitem__(self, i):
        if i % 8 == 7: look()
        x, y = torch.zeros(50_000), self.labels[i % len(self.labels)]
        x[:8] = torch.randn(8, generator=torch.Generator().manual_seed(self.first + i)); x[0] += y
        return x, y

torch.set_num_threads(1)
class Narrow(torch.nn.Module):
    def __init__(self): super().__init__(); self.inner = torch.nn.Linear(8, 3)
    def forward(self, x): return self.inner(x[:, :8])

def run(size):
    given = {name: DataLoader(Lazy(size, 10_000 * i), batch_size=64) for i, name in enumerate(("forget", "retain", "test"))}
    torch.manual_seed(0)
    call(Narrow(), given)
def call(net, given):
    CALL
run(64); first = most; run(SIZE); print(most - first)
"""
CALLS = {
    "audit": 'ff.audit({"original": net}, **given, controls=True, intervals=False, progress=False)',
    "audit of a class": 'given["forget"].dataset.labels, given["retain"].dataset.labels = (2,), (0, 1); '
    'ff.audit({"original": net}, **given, controls=True, intervals=False, progress=False)',
    "sweep": 'ff.unlearn(net, "sweep", forget=given["forget"], retain=given["retain"], nonmember=given["test"], budget=2000, '
    "check_overlap=False, progress=False)",
    "unlearn": 'ff.unlearn(net, "lightweight", forget=given["forget"], retain=given["retain"], nonmember=given["test"], steps=4, '
    "check_overlap=False, progress=False)",
    "relearn": 'ff.audit.relearn_time(net, train=given["retain"], forget=given["forget"], original_accuracy=1.0, cap=1, progress=False)',
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="counts memory in use by glibc's mallinfo2")
@pytest.mark.parametrize("call", CALLS)
def test_peak_memory_over_a_lazy_set_ten_times_the_limit(call):
    """5,120 samples of 200 kB in each of three sets: a gigabyte each, ten times the limit."""
    code = textwrap.dedent(AUDIT).replace("CALL", CALLS[call]).replace("SIZE", "5120")
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= LIMIT
