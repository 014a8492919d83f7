"""Random calls of every op, public and raw: each gives what the reference gives, or is refused in words with nothing changed.

    python tests/random_calls.py [--count N] [--seed S] [--only K]

Call K of seed S is the same whatever the count is, so ``--only K`` replays a failure alone. test_sanitized.py runs this under the
sanitizers.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable
from typing import Any

import random_draws as draws
import torch
from random_draws import RAW, Draw
from torch import Tensor

import fastforget as ff
from fastforget import _schema
from fastforget.ops import mask, membership, noise, update

OPS = torch.ops.fastforget


# ---- public functions from the same draws: their arguments, and the call


def _no_empty(given: list[Tensor]) -> list[Tensor | None]:
    return [None if isinstance(m, Tensor) and m.dtype == torch.int8 else m for m in given]


PUBLIC: dict[str, tuple[Callable[[Draw], list[Any]], Callable[..., Any]]] = {
    "normal_": (lambda d: draws.normal(d)[:1], lambda x: noise.normal_(x, 2.0, 0.5, seed=7)),
    "add_normal_": (lambda d: draws.add_normal(d)[:1], lambda x: noise.add_normal_(x, 0.5, seed=7, start=3)),
    "perturb_step_": (lambda d: draws.perturb(d)[:2], lambda x, g: noise.perturb_step_(x, g, lr=0.1, std=0.5, seed=7)),
    "error_max_loss": (lambda d: draws.loss(d)[:2], update.error_max_loss),
    "error_max_step_": (
        lambda d: draws.step(d)[:4], lambda x, g, m, v: update.error_max_step_(x, g, m, v, step=2, lr=0.1, betas=(0.0, 0.9), clamp=(-1, 1)),
    ),
    "distill_loss": (
        lambda d: draws.distilled(d)[:3],
        lambda z, t, drop: update.distill_loss(z, t, drop=drop if not isinstance(drop, Tensor) or drop.numel() else None, temperature=2.0),
    ),
    "gradient_products": (lambda d: draws.products(d)[:2], lambda a, b: torch.stack(update.gradient_products(a, b))),
    "dampen_": (lambda d: draws.dampen(d)[:3], lambda x, f, r: mask.dampen_(x, f, r, alpha=1, lam=0.5)),
    "accumulate_importance_": (lambda d: draws.importance(d)[:2], mask.accumulate_importance_),
    "soft_threshold_": (lambda d: draws.shrink(d)[:1], lambda x: mask.soft_threshold_(x, 0.5)),
    "neuron_stats": (lambda d: draws.rows(d)[:1], lambda x: mask.neuron_stats(x)),
    "saliency_mask": (lambda d: draws.saliency(d)[:1], lambda x: mask.saliency_mask(x, 0.3)),
    "ratio_mask": (lambda d: draws.ratios(d)[:2], lambda n, m: mask.ratio_mask(n, m, 1.0)),
    "masked_sgd_": (
        lambda d: [*draws.sgd(d)[:3], d.pick(None, 0)],
        lambda x, g, m, _: mask.masked_sgd_(x, g, _no_empty(m) if isinstance(m, list) else m, lr=0.1, weight_decay=0.1),
    ),
    "masked_adam_": (
        lambda d: draws.adam(d)[:5],
        lambda x, g, m, a, s: mask.masked_adam_(x, g, _no_empty(m) if isinstance(m, list) else m, a, s, step=2, lr=0.1, betas=(0.0, 0.9)),
    ),
    "membership_scores": (lambda d: draws.scores(d)[:2], membership.membership_scores),
    "roc_stats": (lambda d: draws.roc(d)[:2], membership.roc_stats),
    "roc_bootstrap": (lambda d: draws.roc(d)[:2], lambda m, n: membership.roc_bootstrap(m, n, resamples=5)),
    "rmia_counts": (lambda d: draws.counts(d)[:2], lambda x, z: membership.rmia_counts(x, z, gamma=(1.0, 2.0))),
    "lira": (lambda d: draws.loo(d)[:2], lambda s, m: membership.lira("loo", s, m)),
    "Lira": (lambda d: draws.loo(d)[:2], lambda s, m: membership.Lira(*s.shape[1:3]).update(s, m).score(s[:1])),
}  # fmt: skip


# ---- judging


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors_of(v)] if isinstance(value, (list, tuple)) else []


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or a.device.type == "meta":
        return True
    if a.is_complex() or b.is_complex():
        return torch.equal(torch.view_as_real(a).nan_to_num(7.0), torch.view_as_real(b).nan_to_num(7.0))
    bits = [x.resolve_neg().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8) for x in (a, b)]
    return a.shape == b.shape and torch.equal(*bits)


def close(ours: Tensor, reference: Tensor, least_scale: float) -> str | None:
    """Why not, if it isn't: exact where there is nothing to round, else within a few roundings of the largest element's."""
    if ours.shape != reference.shape or ours.dtype != reference.dtype:
        return f"{ours.shape}, {ours.dtype} for {reference.shape}, {reference.dtype}"
    if ours.device.type == "meta" or ours.layout != torch.strided:
        return None
    if not ours.is_floating_point():
        return None if torch.equal(ours, reference) else "differs"
    a, b = ours.double(), reference.double()
    if not torch.equal(a.isnan(), b.isnan()):
        return "NaN elsewhere"
    least = torch.finfo(ours.dtype).max * 0.5
    a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
    there = (a.abs() < least) & (b.abs() < least)  # near the largest number one may round to infinity
    if not torch.equal(a.abs() < least, b.abs() < least) and (a.clamp(-least, least) - b.clamp(-least, least)).abs().max() > least * 0.01:
        return "infinite elsewhere"
    eps = max(torch.finfo(ours.dtype).eps, torch.finfo(torch.float32).eps if ours.dtype != torch.float64 else 0.0)
    scale = b[there].abs().max().item() if bool(there.any()) else 0.0
    error = (a[there] - b[there]).abs().max().item() if bool(there.any()) else 0.0
    allowed = 64 * eps * max(scale, least_scale)
    return None if error <= allowed else f"off by {error:.3g}, allowed {allowed:.3g}"


def words(error: BaseException) -> bool:
    return isinstance(error, (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError)) and len(str(error)) > 10


def outcome(call: Callable[..., Any], args: list[Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(*args), None
    except Exception as error:
        return None, error


def one_call(seed: int, number: int) -> str:
    """Makes call ``number`` and judges it; returns "served" or "refused".

    Raises:
        AssertionError: with the call, if it is neither right nor refused in words.
    """
    d = Draw(seed * 1_000_003 + number)
    d.public = public = d.chance(0.4)
    name = d.pick(*(PUBLIC if public else RAW))
    make = PUBLIC[name][0] if public else RAW[name]
    args = make(d)
    for _ in range(d.pick(0, 0, 1, 1, 1, 2)):
        args = d.spoiled(args)
    if not public and d.chance(0.02):
        args = args[: d.random.randrange(len(args))]
    before, theirs = copy.deepcopy(args), copy.deepcopy(args)
    label = f"call {number} of seed {seed}, {'public' if public else 'raw'} {name}: {described(before)}"

    ours = PUBLIC[name][1] if public else getattr(OPS, name)
    torch.ops.fastforget._cpu_isa(d.pick(2, 3, 4))
    result, error = outcome(ours, args)
    if error is not None:
        assert words(error), f"{label}\nno words: {error!r}"
        for a, b in zip(tensors_of(args), tensors_of(before), strict=True):
            assert same_bits(a, b), f"{label}\nchanged, though it was refused: {error}"
        return "refused"
    if public:
        with ff.use_backend("reference"):
            expected, failed = outcome(PUBLIC[name][1], theirs)
    else:
        _schema.refuse_shared(name, before)
        arguments = getattr(OPS, name).default._schema.arguments
        if any(a.name == "eps" and isinstance(v, float) and v < 0 for a, v in zip(arguments, before, strict=False)):
            return "served"  # a denominator may nearly cancel: there is no right value to hold it against
        defaults = [argument.default_value for argument in arguments]
        expected, failed = outcome(_schema.SCHEMAS[name][1], [*theirs, *defaults[len(theirs) :]])
    assert failed is None, f"{label}\nserved, though the reference says: {failed!r}"
    for i, (a, b) in enumerate(zip(tensors_of([result, args]), tensors_of([expected, theirs]), strict=True)):
        # a normal is right to a share of the deviation, a divergence to a share of the logarithms that it is a difference of
        reason = close(a, b, 1.0 if any(kind in name for kind in ("normal", "perturb", "distill")) else 1e-6)
        assert reason is None, f"{label}\ntensor {i}: {reason}\n{a}\n{b}"
    return "served"


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        where = f"@{value.data_ptr():x}" if value.layout == torch.strided and value.device.type == "cpu" else str(value.layout)
        return f"{str(value.dtype)[6:]}{list(value.shape)}{list(value.stride()) if value.layout == torch.strided else ''}{where}"
    if isinstance(value, list):
        return f"[{', '.join(map(described, value))}]"
    return repr(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FASTFORGET_TEST_SEED", "0")))
    parser.add_argument("--only", type=int, help="this call alone")
    options = parser.parse_args()
    assert set(RAW) == set(_schema.SCHEMAS), f"draws and ops differ by {sorted(set(RAW) ^ set(_schema.SCHEMAS))}"
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty hands out NaN
    counts = {"served": 0, "refused": 0}
    for number in [options.only] if options.only is not None else range(options.count):
        if options.only is not None or os.environ.get("FASTFORGET_EACH_CALL"):
            print(f"call {number}", flush=True)
        # A crash says nothing itself: the number of the call in hand is written where the parent finds it.
        if "FASTFORGET_CALL_FILE" in os.environ:
            with open(os.environ["FASTFORGET_CALL_FILE"], "w") as file:
                file.write(f"python tests/random_calls.py --seed {options.seed} --only {number}")
        try:
            counts[one_call(options.seed, number)] += 1
        except AssertionError as error:
            print(error)
            print(f"replay: python tests/random_calls.py --seed {options.seed} --only {number}")
            return 1
    print(f"{sum(counts.values())} calls: {counts['served']} served, {counts['refused']} refused in words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
