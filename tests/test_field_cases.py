"""Every case of ``tests/field_cases`` gives what is right."""

from __future__ import annotations

import pytest
from field_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_as_expected(case):
    assert case.got() == case.expected
