"""The pybind11 module: golden values of the noise, one at a time. A checkout builds it; a wheel doesn't hold it."""

from __future__ import annotations

import importlib
import math

import pytest
from native_parts import REQUIRED


def test_host_golden_values() -> None:
    try:
        _host = importlib.import_module("fastforget._host")
    except ImportError as error:
        if REQUIRED:
            raise
        pytest.skip(f"only a checkout builds it: {error}")
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
