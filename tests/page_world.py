"""An audit with everything that a page can show: three methods, four controls, intervals, shadow models, probes, relearn time.

8x8 digits; the three methods are stand-ins (the retrained model, shaken), everything measured is real.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from digits_world import World, small_cnn, small_mlp

import fastforget as ff

CLASS = 3
CONTROLS = ("untouched", "random", "fine_tuned", "suppressed")
METHODS = ("unlearned", "forsaken", "lightweight")
MODELS = ("original", *METHODS, "retrained")
ATTACKS = ("loss", "confidence", "entropy", "attack_p", "lira", "rmia")
Set = tuple[torch.Tensor, torch.Tensor]


@cache
def _world() -> tuple[dict[str, torch.nn.Module], dict[str, Set], dict[str, Any]]:
    """Models, sets, and what else the audit reads."""
    world = World()
    test, population = (tuple(part[at] for part in world.test) for at in (slice(300), slice(300, None)))
    sets = {"forget": world.part(world.train, [CLASS], True), "retain": world.part(world.train, [CLASS], False), "test": test}
    models = {"original": world.net("cnn")}
    retrained = world.net("cnn", (CLASS,))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for i, name in enumerate(METHODS):
            models[name] = copy.deepcopy(retrained)
            for w in models[name].parameters():
                w += 0.01 * (i + 1) * torch.randn_like(w)
        teacher = small_cnn().eval()
    pool = tuple(map(torch.cat, zip(world.train, test, strict=True)))
    held = ff.audit.shadows(lambda seed: small_mlp(), pool, 8, epochs=4, population=population, progress=False)
    # Relearning the forget set alone is the fastest.
    more = {"shadows": held, "population": population, "teacher": teacher, "relearn": ("golatkar",), "train": sets["forget"]}
    return models | {"retrained": retrained}, sets, more


def full_report(rename: dict[str, str] | None = None) -> tuple[ff.audit.AuditReport, dict[str, Any]]:
    """The report and its three sets; ``rename`` gives models and controls other names."""
    models, sets, more = _world()
    controls = ff.audit.controls(models["original"], forget=sets["forget"], retain=sets["retain"])
    models, controls = ({(rename or {}).get(name, name): net for name, net in nets.items()} for nets in (models, controls))
    return ff.audit(models, **sets, **more, attacks=ATTACKS, controls=controls, progress=False), sets
