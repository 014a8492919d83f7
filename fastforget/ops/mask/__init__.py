"""Masking of weights by importance: elementwise, statistics of rows, selection, and optimiser steps under a mask."""

from .elementwise import SoftThreshold, accumulate_importance_, dampen_, soft_threshold_
from .optim import masked_adam_, masked_sgd_
from .rows import NeuronStats, NeuronStatsList, neuron_stats
from .select import pack_bits, saliency_mask, unpack_bits

__all__ = [
    "NeuronStats",
    "NeuronStatsList",
    "SoftThreshold",
    "accumulate_importance_",
    "dampen_",
    "masked_adam_",
    "masked_sgd_",
    "neuron_stats",
    "pack_bits",
    "saliency_mask",
    "soft_threshold_",
    "unpack_bits",
]
