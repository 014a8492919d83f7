"""``python -m fastforget score``: membership attacks from arrays that any framework saved."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import _safetensors as safetensors_io
from ..._command import Parser, unusable
from ..._files import write_json, write_whole
from ..._progress import progress as progress_bar
from ..._text import visible
from ...ops.membership._lira import VARIANCES
from ..measure import intervals
from ..measure.attacks import figures
from .files import BadArray, Rows, class_ids, files_of, flags, open_rows
from .run import ATTACKS, NEED_KEEP, OF_SCORES, SHADOWED, Inputs, Options, Result, run

HELP = """Files are .npy, .npz or .safetensors and are read by pieces, so none need fit in memory. Of several arrays in one file that called
logits, labels, keep or members is taken. Rows are samples, the same ones in the same order everywhere.

  python -m fastforget score --logits target.npy --labels y.npy --members m.npy
  python -m fastforget score --logits target.npy --labels y.npy --shadow-logits shadows/ --keep keep.npy --out scores.npz

Exit status: 0 done, 2 a file or an option could not be used."""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m fastforget score",
        description="Membership-inference scores of a model from saved logits, alone or beside shadow models' logits.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = p.add_argument_group("files")
    files.add_argument("--logits", type=Path, required=True, metavar="FILE", help="the target's: [N, K], or [N, A, K] for A queries")
    files.add_argument("--labels", type=Path, metavar="FILE", help="class ids [N]")
    files.add_argument("--shadow-logits", type=Path, metavar="DIR", help="one file a shadow model, of the shape of --logits; taken by name")
    files.add_argument("--keep", type=Path, metavar="FILE", help="[M, N], 1: model m (by name) was trained on sample n; without: none was")
    files.add_argument("--members", type=Path, metavar="FILE", help="[N], 1: the target was trained on it; gives AUC and the like")
    files.add_argument("--population-logits", type=Path, metavar="FILE", help="the target's, of samples no model was trained on")
    files.add_argument("--population-labels", type=Path, metavar="FILE")
    files.add_argument("--population-shadow-logits", type=Path, metavar="DIR", help="the shadow models', file names as in --shadow-logits")
    files.add_argument("--scores", action="store_true", help="the files hold logit-scaled confidences [N] or [N, A], not logits")
    rules = p.add_argument_group("attacks")
    attack_help = f"of {', '.join(ATTACKS)} (default: all the files allow)"
    rules.add_argument("--attack", nargs="+", choices=ATTACKS, metavar="NAME", help=attack_help)
    rules.add_argument("--gamma", type=float, default=2.0, help="RMIA's (default: %(default)s)")
    rules.add_argument("--a", type=float, default=0.3, help="RMIA's offline scaling (default: %(default)s)")
    rules.add_argument("--strict", action="store_true", help="RMIA compares with > in place of >=")
    rules.add_argument("--variance", choices=VARIANCES, default="auto", help="LiRA's (default: per_example from 64 models, else global)")
    rules.add_argument("--tail", choices=("one_sided", "density"), default="one_sided", help="offline LiRA's (default: %(default)s)")
    out = p.add_argument_group("output")
    out.add_argument("--out", type=Path, metavar="FILE", help="each sample's scores, higher = more member-like (.npz or .safetensors)")
    out.add_argument("--json", type=Path, metavar="FILE", help="figures, counts and conventions")
    out.add_argument("--resamples", type=int, help="of the bootstrap behind the intervals (default: 200 to 1000 by size)")
    out.add_argument("--seed", type=int, default=0, help="the bootstrap's")
    out.add_argument("--chunk", type=int, metavar="ROWS", help="samples at a time (default: some 8 MB)")
    out.add_argument("--no-progress", action="store_true")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    _check(p, args)
    try:
        inputs = _inputs(args)
        population = _population(args, inputs)
        members = None
        if args.members is not None:
            members = flags(open_rows(args.members, "members"), (len(inputs.target),), "1 for a sample the target was trained on")
            if not bool(members.any()) or bool(members.all()):
                raise BadArray(f"{args.members}: all samples are {'' if members.any() else 'non-'}members; accepted are some of both")
        attacks = _attacks(args, inputs, population)
        options = Options(args.gamma, args.a, args.strict, args.variance, args.tail, args.chunk)
        result = run(inputs, population, attacks, options, lambda total: progress_bar(total, "score", not args.no_progress))
        rows = [_row(a, s, members, args) for a, s in result.scores.items()]
        if args.out is not None:
            _write(args.out, result.scores)
        if args.json is not None:
            facts = {"counts": result.counts, "conventions": result.conventions, "intervals": intervals.CONVENTION}
            write_json(args.json, {"rows": rows, **facts})
    except (BadArray, OSError) as error:
        return unusable("score", error)
    print(visible(_text(rows, result, members), keep="\n"))
    return 0


def _check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.labels is None and not args.scores:
        p.error("--labels is needed with logits (--scores: the files hold logit-scaled confidences already)")
    if args.keep is not None and args.shadow_logits is None:
        p.error("--keep says who trained the shadow models: it needs --shadow-logits")
    if (args.population_logits is None) != (args.population_labels is None) and not args.scores:
        p.error("--population-logits and --population-labels need each other")
    if args.population_shadow_logits is not None and (args.population_logits is None or args.shadow_logits is None):
        p.error("--population-shadow-logits needs --population-logits and --shadow-logits")
    if not (args.gamma >= 2.0**-126 and math.isfinite(args.gamma)):
        p.error(f"--gamma: got {args.gamma}; accepted is a number > 0")
    if not 0.0 <= args.a <= 1.0:
        p.error(f"--a: got {args.a}; accepted is 0 to 1")
    for name, least in (("chunk", 1), ("resamples", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            p.error(f"--{name}: got {value}; accepted is {least} or more")
    if args.out is not None and args.out.suffix not in (".npz", ".safetensors"):
        p.error(f"--out: {args.out} ends in {args.out.suffix or 'nothing'}; accepted are .npz and .safetensors")


def _inputs(args: argparse.Namespace) -> Inputs:
    target = _target(args.logits, args.scores)
    labels = _labels(args.labels, target, args)
    shadows = _shadows(args.shadow_logits, target, "--shadow-logits")
    keep = None
    if args.keep is not None:
        keep = flags(open_rows(args.keep, "keep"), (len(shadows), len(target)), "[shadow models, samples], 1 for IN")
    return Inputs(target, labels, shadows, keep, args.scores)


def _population(args: argparse.Namespace, inputs: Inputs) -> Inputs | None:
    if args.population_logits is None:
        return None
    target = _target(args.population_logits, args.scores)
    if target.shape[1:] != inputs.target.shape[1:]:
        raise BadArray(f"{target.path}: shape {list(target.shape)}; accepted are rows as in {args.logits}, {list(inputs.target.shape[1:])}")
    shadows = _shadows(args.population_shadow_logits, target, "--population-shadow-logits")
    if shadows and [s.path.name for s in shadows] != [s.path.name for s in inputs.shadows]:
        raise BadArray(f"{args.population_shadow_logits}: files of other names than in {args.shadow_logits}; accepted are the same names")
    return Inputs(target, _labels(args.population_labels, target, args), shadows, None, args.scores)


def _target(path: Path, scores: bool) -> Rows:
    rows = open_rows(path, "scores" if scores else "logits")
    shapes = (1, 2) if scores else (2, 3)
    accepted = "[N] or [N, A] of logit-scaled confidences" if scores else "[N, K] or [N, A, K] of logits with K >= 2 (--scores: scores)"
    if len(rows.shape) not in shapes or (not scores and rows.shape[-1] < 2) or 0 in rows.shape:
        raise BadArray(f"{path}: shape {list(rows.shape)}; accepted is {accepted}")
    if not rows.floating:
        raise BadArray(f"{path}: {rows.dtype}; accepted are floating-point numbers")
    return rows


def _labels(path: Path | None, target: Rows, args: argparse.Namespace) -> Tensor | None:
    if path is None or args.scores:
        return None
    labels, classes = class_ids(open_rows(path, "labels"), len(target), str(target.path)), target.shape[-1]
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise BadArray(f"{path}: label {int(labels[first])} of sample {first}; {target.path} has {classes} classes, 0 to {classes - 1}")
    return labels


def _shadows(folder: Path | None, target: Rows, option: str) -> list[Rows]:
    if folder is None:
        return []
    files = files_of(folder)
    if len(files) < 2:
        raise BadArray(f"{option}: {folder} holds {len(files)} shadow model{'' if len(files) == 1 else 's'}; accepted are 2 or more")
    shadows = [open_rows(path, "logits") for path in files]
    for rows in shadows:
        if rows.shape != target.shape:
            raise BadArray(f"{rows.path}: shape {list(rows.shape)}; accepted is that of {target.path}, {list(target.shape)}")
        if not rows.floating:
            raise BadArray(f"{rows.path}: {rows.dtype}; accepted are floating-point numbers")
    return shadows


def _attacks(args: argparse.Namespace, inputs: Inputs, population: Inputs | None) -> list[str]:
    """Those asked for, or all that the files allow."""
    refused: dict[str, str] = {}
    for attack in ATTACKS:
        if args.scores and attack in ("entropy", "modified_entropy", "margin"):
            refused[attack] = f"needs logits; of scores there are {', '.join(OF_SCORES)}"
        elif attack == "attack_p" and population is None:
            refused[attack] = "needs --population-logits"
        elif attack in SHADOWED and not inputs.shadows:
            refused[attack] = "needs --shadow-logits"
        elif attack in NEED_KEEP and inputs.keep is None:
            refused[attack] = f"needs --keep; {attack}_offline does without"
        elif attack.startswith("rmia") and population is not None and not population.shadows:
            refused[attack] = "compares with the population, so it needs --population-shadow-logits too"
    for attack in args.attack or ():
        if attack in refused:
            raise BadArray(f"--attack {attack} {refused[attack]}")
    return list(dict.fromkeys(args.attack)) if args.attack else [a for a in ATTACKS if a not in refused]


def _row(attack: str, scores: Tensor, members: Tensor | None, args: argparse.Namespace) -> dict[str, Any]:
    """One attack's figures, each beside its 95 % interval."""
    known = ~torch.isnan(scores)
    row: dict[str, Any] = {"attack": attack, "scored": int(known.sum()), "nan": int((~known).sum())}
    if members is None:
        ends = np.quantile(scores[known].numpy(), (0.05, 0.5, 0.95)).tolist() if known.any() else [math.nan] * 3
        return row | dict(zip(("p5", "median", "p95"), ends, strict=True))
    inside, outside = scores[known & members], scores[known & ~members]
    row |= {"members": len(inside), "nonmembers": len(outside)}
    if not len(inside) or not len(outside):
        return row | {"auc": math.nan, "auc_interval": [math.nan] * 2}
    return row | figures(inside, outside, seed=args.seed, draws=args.resamples).to_dict()


def _write(path: Path, scores: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        safetensors_io.save(path, scores)
        return
    buffer = io.BytesIO()
    np.savez(buffer, **{name: s.numpy() for name, s in scores.items()})  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())


def _text(rows: list[dict[str, Any]], result: Result, members: Tensor | None) -> str:
    keys = {"p5": "5 %", "median": "median", "p95": "95 %"}
    if members is not None:
        keys = {"auc": "AUC", "balanced_accuracy": "balanced acc.", "tpr_at_1pct_fpr": "TPR at 1 % FPR"}
        keys["tpr_at_0.1pct_fpr"] = "TPR at 0.1 % FPR"
    table = [["attack", *keys.values(), "NaN"]]
    for row in rows:
        table.append([row["attack"], *(_cell(row, key) for key in keys), str(row["nan"])])
    wide = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, wide, strict=True))) for r in table]
    lines += ["", _counted(result.counts)]
    if members is not None:
        lines.append(f"{int(members.sum())} members, {int((~members).sum())} non-members; in brackets 95 % intervals; higher = member")
        if not rows[0].get("resolves_0.1pct_fpr", True):
            lines.append("too few non-members for an FPR of 0.1 %: there no false positive is allowed at all")
    for attack, convention in result.conventions.items():
        if convention:
            lines.append(f"{attack}: " + "; ".join(f"{k} {v}" if k != "source" else str(v) for k, v in convention.items()))
    return "\n".join(lines)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key, math.nan)
    text = "-" if math.isnan(value) else f"{value:.4f}"
    ends = row.get(f"{key}_interval")
    return text if ends is None or math.isnan(ends[0]) else f"{text} [{ends[0]:.4f}, {ends[1]:.4f}]"


def _counted(counts: dict[str, int]) -> str:
    words = {
        "samples": "samples",
        "nan_target": "of them with NaN logits",
        "shadow_models": "shadow models",
        "nan_shadow_scores": "NaN shadow scores left out",
        "never_out": "samples in every model",
        "never_in": "samples in none",
        "population_samples": "population samples",
        "population_nan_target": "of them with NaN logits",
        "population_nan_shadow_scores": "NaN shadow scores on the population left out",
    }
    return ", ".join(f"{counts[k]} {what}" for k, what in words.items() if k in counts and (counts[k] or k.endswith("samples")))
