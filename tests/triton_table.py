"""Runs the ops of the table on their Triton kernels, for test_triton_interpreter.py, which runs this file in a process of its own.

Each line of the input names an op; the answer is a line of JSON, the traceback of what is wrong or an empty string.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import numpy as np
import op_table
import torch
from tolerance import FLOATS
from triton_elementwise import like_a_gpu

import fastforget as ff


def fault(op: str) -> str:
    torch.manual_seed(int(os.environ.get("FASTFORGET_TEST_SEED", "0")))
    try:
        for dtype in FLOATS:
            op_table.check(op, lambda *args: ff.backend.call_forced(op, "cpu", args), dtype)
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    np.seterr(all="ignore")
    with like_a_gpu(), ff.use_backend("triton"):
        for line in sys.stdin:
            print(json.dumps(fault(line.strip())), flush=True)
