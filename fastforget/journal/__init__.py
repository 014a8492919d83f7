"""Unlearning requests one after another, each with its receipt: :class:`fastforget.Journal`."""

from .call import Journal
from .check import Check
from .loss import Loss, RetrainWarning
from .store import Busy

__all__ = ["Busy", "Check", "Journal", "Loss", "RetrainWarning"]
