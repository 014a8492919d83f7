"""The other way round: our methods by the interfaces of other packages, for people who have one of those already; and files of theirs.

- :func:`unlearning`: the function that the NeurIPS 2023 challenge asked for;
- :mod:`fastforget.adapters.supreme`: a method of SUPREME;
- :mod:`fastforget.adapters.torchunlearn`: an unlearner of torchunlearn;
- :mod:`fastforget.adapters.tofu`, :mod:`fastforget.adapters.muse`: data sets of language benchmarks, from files by path;
- :mod:`fastforget.adapters.scores`: the figures of these benchmarks.

Imported when it is asked for. None of these packages is needed, or imported before its adapter is used.
"""

from .challenge import Unlearning, unlearning

__all__ = ["Unlearning", "unlearning"]
