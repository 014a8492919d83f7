"""What every method's loop is made of: counted steps, batches drawn up front, terms that push and hold, and how norms behave meanwhile.

These names are public, for methods in other packages, too (docs/plugins.md); the modules they come from aren't.

- :class:`Task`: the copy of the model to change, the sets, the classes, the seed; :class:`Cost`: its sample passes, seconds and budget.
- The loop: :func:`training`, :func:`steps`, :func:`descend`, :func:`backward`, :func:`gradients`, :func:`trainable`, :func:`cosine`,
  :func:`must_be_finite`.
- Batches with the original model's answers: :class:`Drawn`, :class:`Batch`, :func:`answers`.
- Terms of an objective: :func:`anchor`, :func:`hold`, :func:`away_from`, :func:`log_odds`, :func:`confidence`, :func:`alike`.
- :func:`settle`: batch norm's running statistics, taken anew. :func:`choose_precision`: makes ``precision=`` hold, which a method that
  doesn't call it ignores. :func:`check`: a method's options.
"""

from ..cost import Cost
from ..options import check
from ..task import Task
from .drawn import Batch, Drawn, answers
from .loop import backward, cosine, descend, gradients, must_be_finite, steps, trainable, training
from .norms import settle
from .precision import choose as choose_precision
from .terms import alike, anchor, away_from, confidence, hold, log_odds

__all__ = [
    "Batch",
    "Cost",
    "Drawn",
    "Task",
    "alike",
    "anchor",
    "answers",
    "away_from",
    "backward",
    "check",
    "choose_precision",
    "confidence",
    "cosine",
    "descend",
    "gradients",
    "hold",
    "log_odds",
    "must_be_finite",
    "settle",
    "steps",
    "trainable",
    "training",
]
