"""What an audit was asked for, checked before anything runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import _data, _overlap
from .._modules import refuse_kind
from .._random import own_randomness
from .controls import chosen
from .figures import ORIGINAL, RETRAINED, is_reference
from .kind import Kind
from .measure.oracles import Oracle
from .measure.relearn import DEFINITIONS
from .shadow import attacks as shadow_attacks

Unpack = Callable[[Any], tuple[Any, Tensor]]
Forward = Callable[[nn.Module, Any], Tensor]


@dataclass
class Request:
    """One audit's models, sets and options.

    Attributes:
        kind: what it is about.
        models: the caller's, the original first and the retrained ones last, "retrained" behind them.
        controls: further models, of which it is known what they must get.
        sets: "forget", "retain" and "test"; and "population" where RMIA is run.
        overlap: how many of the forget set's samples or sequences the other sets hold, by their names.
        attacks: all that are run, the loss first and those on shadow models last.
        shadow_attacks: those of them that read shadow models.
        shadows: the shadow models' answers.
        oracles: further membership oracles by name.
        teacher: ZRF's network.
        relearn: definitions of relearn time.
        train: the whole training set, for these.
        intervals: whether figures get confidence intervals.
        frozen_body: whether the caller says that retraining leaves all but the last layer alone.
        seed: of everything that draws at random.
        unpack, forward: batch -> (inputs, labels); (model, inputs) -> logits.
        progress: whether to show a bar.
    """

    kind: Kind
    models: dict[str, nn.Module]
    controls: dict[str, nn.Module]
    sets: dict[str, _data.Source]
    overlap: dict[str, Any]
    attacks: tuple[str, ...]
    shadow_attacks: tuple[str, ...]
    shadows: Any
    oracles: dict[str, Oracle]
    teacher: nn.Module | None
    relearn: tuple[str, ...]
    train: Any
    intervals: bool
    frozen_body: bool
    seed: int
    unpack: Unpack | None
    forward: Forward | None
    progress: bool

    def everyone(self) -> dict[str, nn.Module]:
        """The models and then the controls."""
        return {**self.models, **self.controls}


def checked(
    kind: Kind,
    models: dict[str, nn.Module],
    sets: Mapping[str, Any],
    *,
    attacks: Sequence[str] | None,
    oracles: dict[str, Oracle] | None,
    shadows: Any,
    population: Any,
    teacher: nn.Module | None,
    relearn: Sequence[str],
    train: Any,
    intervals: bool,
    frozen_body: bool,
    check_overlap: bool,
    controls: bool | dict[str, nn.Module],
    seed: int,
    unpack: Unpack | None,
    forward: Forward | None,
    batch_size: int | None,
    progress: bool,
) -> Request:
    """The request of one call of ``ff.audit``; makes the controls where they are asked for.

    Raises:
        TypeError, ValueError: as ``ff.audit``.
    """
    given = {
        "oracles": oracles, "shadows": shadows, "population": population, "teacher": teacher, "relearn": relearn, "train": train,
    }  # fmt: skip
    _refuse(kind, given)
    models, names = _models(models), _attacks(kind, attacks)
    seed = _seed(seed)
    definitions = _probes(teacher, relearn, train)
    by_shadows = shadow_attacks.chosen(names, shadows, population is not None)
    names = (*(name for name in names if name not in shadow_attacks.NAMES), *by_shadows)
    if any(name.startswith("rmia") for name in by_shadows):
        sets = {**sets, "population": population}
    how: dict[str, Any] = {"unpack": unpack, "batch_size": batch_size, "reading": kind.labels}
    sources = {name: _data.source(data, name=name, **how) for name, data in sets.items()}
    overlap = _shared(sources, check_overlap, seed)
    return Request(
        kind=kind,
        models=models,
        controls=chosen(controls, models, sources, seed, forward, sequences=kind.sequences),
        sets=sources,
        overlap=overlap,
        attacks=names,
        shadow_attacks=by_shadows,
        shadows=shadows,
        oracles=oracles or {},
        teacher=teacher,
        relearn=definitions,
        train=None if train is None else _data.source(train, name="train", unpack=unpack),
        intervals=intervals,
        frozen_body=bool(frozen_body),
        seed=seed,
        unpack=unpack,
        forward=forward,
        progress=progress,
    )


def _models(models: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The original first, further retrained models after the others, and the retrained one last."""
    if not isinstance(models, dict) or not models:
        raise TypeError(f'models: got {type(models).__name__}; accepted is a dict such as {{"original": net, "unlearned": net2}}')
    for name, model in models.items():
        refuse_kind(f"models[{name!r}]", model)
        if not isinstance(name, str) or not isinstance(model, nn.Module):
            raise TypeError(f"models[{name!r}]: got {type(model).__name__}; accepted is a name and a torch.nn.Module")
    further = [name for name in models if is_reference(name)]
    if further and RETRAINED not in models:
        raise ValueError(
            f"models: got {', '.join(map(repr, further))}, which {'is' if len(further) == 1 else 'are'} read as retrained, but none named "
            f"{RETRAINED!r}, the first that all others are held against. Name one of them {RETRAINED!r}, or otherwise"
        )
    order = sorted(models, key=lambda name: (name != ORIGINAL) + is_reference(name) + (name == RETRAINED))
    return {name: models[name] for name in order}


def _seed(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(f"seed: got {seed!r}; accepted is an int") from None


def _refuse(kind: Kind, given: Mapping[str, Any]) -> None:
    """Refuses options that don't serve this kind of audit."""
    for name, instead in kind.refused.items():
        if given[name] is not None and (name != "relearn" or len(given[name])):
            raise ValueError(
                f"{name}: got {type(given[name]).__name__}; of sequences it isn't measured, so accepted is an audit without it. Instead, "
                f"{instead} (docs/language.md)"
            )


def _shared(sets: Mapping[str, _data.Source], look: Any, seed: int) -> dict[str, Any]:
    """How much of the forget set the other two hold; more than twins explain is refused, by the rule of ``ff.unlearn``. Of whole classes,
    too: in a test set that holds them, what was trained on would be called unseen."""
    if not isinstance(look, bool):
        raise TypeError(f"check_overlap: got {type(look).__name__}; accepted are True and False")
    if not look:
        return {"how": "not checked: check_overlap=False"}
    with own_randomness(seed):
        return _overlap.check(sets["forget"], [sets["retain"], sets["test"]])


def _attacks(kind: Kind, attacks: Sequence[str] | None) -> tuple[str, ...]:
    attacks = kind.default if attacks is None else attacks
    accepted = (*kind.attacks, *(() if "shadows" in kind.refused else shadow_attacks.NAMES))
    if isinstance(attacks, str) or not all(attack in accepted for attack in attacks):
        by_shadows = "shadows" in kind.refused and any(name in shadow_attacks.NAMES for name in attacks)
        advice = f". Shadow models aren't read: of sequences, {kind.refused['shadows']}" if by_shadows else ""
        raise ValueError(f"attacks: got {attacks!r}; accepted is a list of {', '.join(map(repr, accepted))}{advice}")
    return tuple(dict.fromkeys(("loss", *attacks)))


def _probes(teacher: Any, relearn: Sequence[str], train: Any) -> tuple[str, ...]:
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise TypeError(f"teacher: got {type(teacher).__name__}; accepted is a torch.nn.Module, the network randomly initialised")
    if isinstance(relearn, str) or not all(definition in DEFINITIONS for definition in relearn):
        raise ValueError(f"relearn: got {relearn!r}; accepted is a list of {', '.join(map(repr, DEFINITIONS))}")
    if relearn and train is None:
        raise ValueError("train: got None; relearn= trains on, so pass the whole training set")
    return tuple(dict.fromkeys(relearn))
