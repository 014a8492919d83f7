"""The attacks that read shadow models' answers, as further scores beside those of the audited models."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ..._data import Source
from ..measure.passes import Scored

NAMES = ("lira", "lira_offline", "u_lira", "rmia", "rmia_offline", "attack_r")
# the field reports these; offline RMIA asks for no more than online RMIA does, so it runs only where it is named
USUAL = ("lira", "lira_offline", "rmia", "attack_r", "u_lira")


def chosen(named: tuple[str, ...], shadows: Any, population: bool) -> tuple[str, ...]:
    """Which of them to run: those named, or else all that these shadow models can serve.

    Raises:
        ValueError: one is named, but there are no shadow models for it, or no population for RMIA.
    """
    wanted = tuple(name for name in named if name in NAMES)
    if shadows is None:
        if wanted:
            raise ValueError(f"attacks: {wanted[0]!r} needs shadow models; pass shadows=ff.audit.shadows(...)")
        if population:
            raise ValueError("population: only RMIA reads it, which needs shadow models; pass shadows=ff.audit.shadows(...) too")
        return ()
    queries = getattr(shadows, "queries", 1)
    if queries != 1:
        raise ValueError(f"shadows: they were asked {queries} queries a sample; accepted is 1, the samples as they are")
    if not wanted:
        serves = {
            "u_lira": getattr(shadows, "unlearned", None) is not None,
            "attack_r": getattr(shadows, "losses", True) is not None,
            "rmia": population,
        }
        return tuple(name for name in USUAL if serves.get(name, True))
    for name in wanted:
        if name.startswith("rmia") and not population:
            raise ValueError(f"attacks: {name!r} compares with a population; pass population=, the same samples as to ff.audit.shadows")
    return wanted


def add(shadows: Any, names: tuple[str, ...], sets: dict[str, Source], done: dict[str, dict[str, Scored]]) -> dict[str, str]:
    """Puts the attacks' scores among those of every model and set, float64, NaN where undefined.

    Returns:
        For each set whose samples are not in the shadow models' pool, why; its scores are NaN. The forget and the test set must be there.

    Raises:
        ValueError: samples of the forget or the test set are not in the pool, fewer than 2 shadow models, a wrong population.
    """
    missing: dict[str, str] = {}
    for set_name in ("forget", "retain", "test"):
        index = _located(shadows, sets[set_name], set_name, missing)
        for of in done.values():
            scored = of[set_name]
            for name in names:
                if index is None:
                    scored.scores[name] = torch.full((len(scored.labels),), math.nan, dtype=torch.float64)
                else:
                    scored.scores[name] = _scores(shadows, name, index, scored, of.get("population"))
    return missing


def _located(shadows: Any, source: Source, set_name: str, missing: dict[str, str]) -> Tensor | None:
    try:
        return shadows.locate(source)
    except ValueError as error:
        if set_name != "retain":
            raise ValueError(f"{set_name} set: {error}") from error
        missing[set_name] = f"the retain set is not all in the shadow models' pool: {error}"
        return None


def _scores(shadows: Any, name: str, index: Tensor, scored: Scored, population: Scored | None) -> Tensor:
    with warnings.catch_warnings():
        # undefined scores are counted with the figures
        warnings.simplefilter("ignore")
        found = shadows.score(
            name,
            index=index,
            logit_confidence=scored.scores["logit_confidence"],
            loss=scored.scores["loss"],
            population_loss=population.scores["loss"] if population is not None and name.startswith("rmia") else None,
        )
    if not isinstance(found, Tensor) or found.shape != scored.labels.shape:
        raise TypeError(f"shadows.score({name!r}): returned {type(found).__name__}; accepted is a tensor [{len(scored.labels)}]")
    return found.detach().cpu().double()


def convention(shadows: Any, name: str) -> str:
    """What the attack's number means here, in words."""
    said = shadows.conventions(name)
    if not isinstance(said, dict):
        return str(said)
    options = [f"{key} {value}" for key, value in said.items() if key not in ("attack", "source") and value is not None]
    return "; ".join([*([str(said["source"])] if "source" in said else []), *options])
