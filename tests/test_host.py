"""The pybind11 module: CPU levels and golden values."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("cap", [None, "baseline", "avx2", "avx512", "no-such-level"])
def test_host_module_and_op_library_agree_on_the_cpu_level(cap: str | None) -> None:
    ask = (
        "import json, torch, fastforget, fastforget._host as host\n"
        "print('RESULT', json.dumps([host.cpu(), torch.ops.fastforget._cpu_isa(0)]))"
    )
    env = {k: v for k, v in os.environ.items() if k != "FASTFORGET_CPU_ISA"}
    env.update({"FASTFORGET_CPU_ISA": cap} if cap else {})
    out = subprocess.run(
        [sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True
    ).stdout
    cpu, level = json.loads(out.split("RESULT ", 1)[1])
    assert level == {"baseline": 2, "avx2": 3, "avx512": 4}[cpu["in_force"]]
    accepted = cpu["accepted"]
    assert cpu["built"] == accepted
    if cap in accepted:
        assert cpu["in_force"] == min(cap, cpu["detected"], key=accepted.index)
    else:
        assert cpu["in_force"] == cpu["detected"]
    assert cpu["ignored"] == (None if cap is None or cap in accepted else cap)


def test_host_golden_values() -> None:
    from fastforget import _host

    block = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert _host.philox_block(0, seed=0) == block
    assert tuple(_host.philox_word(i, seed=0) for i in range(4)) == block
    # The published known answer for all-ones key and counter (Random123): every field at its top.
    ones = _host.philox_block(2**64 - 1, seed=-1, stream=2**32 - 1, step=2**32 - 1)
    assert ones == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    for pair in range(2):
        radius = math.sqrt(-2 * math.log(block[2 * pair] * 2**-32))
        turn = 2 * math.pi * block[2 * pair + 1] * 2**-32
        wanted = (radius * math.cos(turn), radius * math.sin(turn))
        for i, z in enumerate(wanted, start=2 * pair):
            # float32(w) is off by up to half an ulp from w itself: 2^-25 in u, a little less in ln u
            assert _host.normal(i, seed=0) == pytest.approx(z, rel=2**-24)
            assert _host.normal_f32(i, seed=0) == pytest.approx(_host.normal(i, seed=0), rel=4 * 2**-23)
