"""The two kinds of audits."""

from __future__ import annotations

from .._labels import CLASSES, TOKENS
from . import measured, sequence_rule, sequences, verdict
from .kind import Kind
from .measure import attacks, tokens
from .names import FOR_SEQUENCES, SEQUENCE_WISE

SAMPLES = Kind(CLASSES, False, attacks.CONVENTION, attacks.DEFAULT, {}, measured.measure, verdict.SAMPLES)
SEQUENCES = Kind(
    TOKENS,
    True,
    tokens.CONVENTION,
    tuple(tokens.CONVENTION),
    FOR_SEQUENCES,
    sequences.measure,
    sequence_rule.SEQUENCES,
)


def asked(sequences: bool) -> Kind:
    """By the argument ``sequences`` of ``ff.audit``."""
    if not isinstance(sequences, bool):
        raise TypeError(f"sequences: got {type(sequences).__name__}; accepted are True (token ids [N, T]) and False (class ids [N])")
    return SEQUENCES if sequences else SAMPLES


def of(request: str) -> Kind:
    """By what a report or a receipt says was requested.

    >>> of("sequence-wise") is SEQUENCES, of("class-wise") is SAMPLES
    (True, True)
    """
    return SEQUENCES if request == SEQUENCE_WISE else SAMPLES
