"""The other way round: our methods by the interfaces of other packages, for people who have one of those already.

- :func:`unlearning`: the function that the NeurIPS 2023 challenge asked for;
- :mod:`fastforget.adapters.supreme`: a method of SUPREME;
- :mod:`fastforget.adapters.torchunlearn`: an unlearner of torchunlearn.

Imported when it is asked for. None of these packages is needed, or imported before its adapter is used.
"""

from .challenge import Unlearning, unlearning

__all__ = ["Unlearning", "unlearning"]
