"""Models of transformers and peft that ranks hold together."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import ranks_language
from ranks import assert_same_state

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow]


def test_as_in_one_process(tmp_path: Path) -> None:
    """GPT-2, Llama and adapters on it: the weights, the verdict and the report that one process has, on each of two ranks."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    first, second = ranks.worlds(lambda name: tmp_path)("ranks_language", "of_transformers", 2)
    for name in ("gpt2", "llama", "lora"):
        for made in (first, second):
            for kind in ranks_language.HELD:
                for method in ("npo", "rmu"):
                    (state, *said), (expected, *expected_said) = made[name, method, kind], first[name, method, "alone"]
                    assert_same_state(state, expected)
                    assert said == expected_said
                assert made[name, "audit", kind] == first[name, "audit", "alone"]
