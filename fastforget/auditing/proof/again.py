"""A receipt's figures measured again: on weights that were given, by a function that builds the model, over the three sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ... import _overlap
from ..._arrays import first_line
from ..._data import source
from ..._identity import bare_names
from ..._labels import Reading
from .. import kinds
from ..figures import ModelRow
from ..names import THRESHOLDS
from ..request import checked
from .finding import Finding, Unreadable, same
from .texts import Samples

# Other hardware, thread counts and batch sizes round otherwise: a sample whose two largest logits are nearly equal may change sides.
SHARE, RELATIVE = 5e-3, 1e-3
CHANGED, MANY = 1.5, 100  # samples that may change sides, of sets with at least so many
NOT_MEASURED = ("model", "reasons", "reason", "convention", "status", "control", "forgetting_rate_reason")


@dataclass
class Again:
    """What to measure again with: the sets by name, and how a model is made."""

    sets: dict[str, Samples]
    build: Callable[[], nn.Module]
    left_out: list[str] = field(default_factory=list)

    def findings(self, receipt: dict[str, Any], states: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
        """One finding for each model whose weights are given.

        Raises:
            Unreadable: a model can't be built, or its weights don't fit it.
        """
        settings = receipt["settings"]
        reading = kinds.of(receipt["request"]).labels
        sizes = {name: len(source(samples, name=name, reading=reading)) for name, samples in self.sets.items()}
        if sizes != receipt["sizes"]:
            yield Finding("sizes", f"the sets given have {sizes} samples")
            return
        yield from self._shared(settings.get("overlap", {}), reading)
        models = {name: _loaded(name, self.build, state) for name, state in states.items()}
        measurable = [name for name in settings["attacks"] if name in THRESHOLDS or name == "attack_p"]
        stated = {row["model"]: row for row in receipt["rows"] + receipt["control_rows"]}
        for row in self._measured(models, measurable, settings):
            smallest = min(count for count in row.counts.values() if count)
            share = max(SHARE, CHANGED / smallest if smallest >= MANY else 0.0)
            difference = next(self._differences(stated.get(row.model, {}), row.to_dict(), "", share), "")
            yield Finding(f"rows.{row.model}.figures, measured again", difference)

    def _shared(self, stated: dict[str, Any], reading: Reading) -> Iterator[Finding]:
        """What the forget set shares with the other sets, counted again where the receipt has counts by contents."""
        sets = {name: source(samples, name=name, reading=reading) for name, samples in self.sets.items()}
        for name, found in stated.items():
            if name in sets and found.get("how") in _overlap.BY_CONTENTS:
                again = _overlap.compare(sets["forget"], sets[name])
                if again.compared_by == found["how"]:
                    yield same(f"settings.overlap.{name}, counted again", found["shared"], again.count, "others are shared")

    def _measured(self, models: dict[str, nn.Module], attacks: list[str], settings: dict[str, Any]) -> list[ModelRow]:
        try:
            kind = kinds.of(settings["request"])
            request = checked(
                kind,
                models,
                self.sets,
                attacks=attacks,
                oracles=None,
                shadows=None,
                population=None,
                teacher=None,
                relearn=(),
                train=None,
                intervals=settings["intervals"],
                frozen_body=settings.get("frozen_body", False),
                check_overlap=False,  # counted apart: it is no reason not to measure
                controls=False,
                seed=settings["seed"],
                unpack=None,
                forward=None,
                batch_size=None,
                progress=False,
            )
            return kind.measure(request).rows
        except (RuntimeError, TypeError, ValueError) as error:
            raise Unreadable(f"the figures can't be measured again: {first_line(error)}") from error

    def _differences(self, stated: Any, measured: Any, where: str, share: float) -> Iterator[str]:
        """Where a measured figure is not the stated one; what needs models or data that were not given is left out."""
        if isinstance(stated, Mapping) and isinstance(measured, Mapping):
            found = {str(key): value for key, value in measured.items()}
            if "auc" in found and not _known(found["auc"]):  # of an attack that had nobody's weights to compare with, its counts are 0
                self.left_out += [f"{where}.auc"] if stated.get("auc") is not None else []
                return
            for key, value in stated.items():
                if key not in NOT_MEASURED:
                    yield from self._differences(value, found.get(key), f"{where}.{key}".lstrip("."), share)
        elif where == "forget_predictions" and isinstance(stated, list):
            moved = sum(abs(one - other) for one, other in zip(stated, measured, strict=False))
            if len(stated) != len(measured) or moved > 2 * max(1.0, SHARE * sum(measured)):
                yield f"{where}: the receipt says {stated}, measured again it is {measured}"
        elif isinstance(stated, list) and isinstance(measured, list):
            if len(stated) != len(measured):
                yield f"{where}: the receipt has {len(stated)} entries, measured again there are {len(measured)}"
            for place, (one, other) in enumerate(zip(stated, measured, strict=False)):
                yield from self._differences(one, other, f"{where}[{place}]", share)
        elif not _known(measured):
            if stated is not None:
                self.left_out.append(where)
        elif stated is None:
            yield f"{where}: the receipt has no value, measured again it is {measured}"
        elif not _near(stated, measured, share):
            yield f"{where}: the receipt says {stated!r:.20}, measured again it is {measured!r:.20}"


def _known(measured: Any) -> bool:
    return measured is not None and not (isinstance(measured, float) and not math.isfinite(measured))


def _near(stated: Any, measured: Any, share: float) -> bool:
    if isinstance(stated, float) or isinstance(measured, float):
        return abs(stated - measured) <= max(share, RELATIVE * abs(stated))
    return bool(stated == measured)


def _loaded(name: str, build: Callable[[], nn.Module], state: Mapping[str, Any]) -> nn.Module:
    try:
        model = build()
    except Exception as error:  # the caller's own code
        raise Unreadable(f"--build: it failed ({type(error).__name__}: {first_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise Unreadable(f"--build: it returned a {type(model).__name__}; accepted is a torch.nn.Module")
    own = {bare: key for key, bare in bare_names(model.state_dict()).items()}
    given = bare_names(key for key in state)
    try:
        with torch.no_grad():
            model.load_state_dict({own.get(bare, bare): state[key] for key, bare in given.items()})
    except Exception as error:
        raise Unreadable(f"--build: the weights of {name} don't fit the model it makes ({' '.join(str(error).split())[:300]})") from error
    return model.eval()
