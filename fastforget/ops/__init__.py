"""Typed functions over tensors, in four families: noise, update, mask, membership."""

from . import mask, membership, noise, update

__all__ = ["mask", "membership", "noise", "update"]
