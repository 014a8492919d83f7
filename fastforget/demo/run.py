"""Train, retrain without the class, unlearn, audit, report: the package's main job on real images."""

from __future__ import annotations

import argparse
import copy
import io
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_whole
from ..auditing import audit
from ..auditing.report import AuditReport
from ..auditing.show.wording import number, percent
from ..auditing.strict_json import write_json
from ..methods import NotForgottenWarning, UnlearnResult, unlearn
from ..methods.task import Task
from ..methods.unsir import train as unsir
from ..methods.unsir.place import Place
from . import data as images
from .nets import NETS, build
from .train import train

# Test accuracy on the forgotten classes at or under which a class counts as gone.
GONE = 0.01
EPOCHS = {"mnist5k": 6, "digits": 20, "fashion-mnist": 3, "mnist": 2, "cifar10": 6}
SMALL = ("mnist5k", "digits")
NEED_NONMEMBERS = ("forsaken", "lightweight")
DEFINITIONS = {
    "forget_accuracy": "test accuracy on the forgotten classes (samples no model was trained on)",
    "retain_accuracy": "test accuracy on the kept classes",
    "train_forget_accuracy": "accuracy on the forgotten classes' training images",
    "train_retain_accuracy": "accuracy on the kept classes' training images",
    "loss_attack_auc": "forgotten training images against test images of the same classes; the ideal is the retrained model's",
    "forgetting_rate": "Forsaken's, with a loss threshold fixed on the original model; the ideal is the retrained model's",
    "speedup": "seconds of retraining / seconds of unlearning",
    "forgot": f"the unlearned model's forget_accuracy is at most {GONE:g}, and the method's own check agrees",
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m fastforget demo",
        description="Train a small network on real images, forget classes, audit it beside a retrained one, write a report.",
        epilog="Exit status: 0 the model forgot, 1 it did not, 2 the demonstration could not run.",
    )
    p.add_argument("--data", choices=tuple(images.LOADERS), default="mnist5k", help="default: %(default)s")
    p.add_argument("--root", type=Path, metavar="DIR", help="where the data's files lie")
    p.add_argument(
        "--method",
        choices=("unsir", "forsaken", "lightweight", "none"),
        default="unsir",
        help="forsaken and lightweight look at half of the test images, and the other half measures; none changes nothing: the "
        "negative control, ends with 1",
    )
    p.add_argument("--classes", type=int, nargs="+", default=[3], metavar="ID", help="to forget (default: 3)")
    p.add_argument("--net", choices=tuple(NETS), default="cnn", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int, help="of training and retraining (default: by the data)")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one")
    p.add_argument(
        "--threads",
        type=int,
        help=f"CPU threads (default: 1 for {' and '.join(SMALL)}, whose networks are so small that threads mostly "
        "wait for each other; else torch's own number)",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="for report.html, receipt.json and .html, unlearned.pt (default: %(default)s)",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    p.add_argument("--quick", action="store_true", help="half the training epochs")
    p.add_argument("--no-progress", action="store_true", help="no progress bars")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    _check(p, args)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for place in (args.out, *([args.json.parent] if args.json else [])):
            if not os.access(place, os.W_OK):
                raise OSError(f"{place} is not a folder that can be written")
        found = images.load(args.data, args.root)
        wrong = [c for c in args.classes if not 0 <= c < found.shape[2]]
        if wrong:
            p.error(f"--classes: {wrong[0]} is not a class of {found.name}; accepted are 0 to {found.shape[2] - 1}")
        with _threads(args.threads or (1 if args.data in SMALL else torch.get_num_threads())):
            return run(args, found)
    except (images.DataMissing, OSError) as error:
        print(f"python -m fastforget demo: {error}", file=sys.stderr)
        return 2


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if len(set(args.classes)) != len(args.classes):
        p.error(f"--classes: {args.classes} names a class twice")
    if len(args.classes) > 8:
        p.error("--classes: at least two classes must stay")
    if args.epochs is not None and args.epochs < 1:
        p.error(f"--epochs: got {args.epochs}; accepted is 1 or more")
    if args.threads is not None and args.threads < 1:
        p.error(f"--threads: got {args.threads}; accepted is 1 or more")
    if not 0 <= args.seed < 2**63:
        p.error(f"--seed: got {args.seed}; accepted is 0 to 2**63 - 1")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        p.error(f"--device: {args.device} can't be used: {str(error).splitlines()[0]}")
    if args.epochs is None:
        args.epochs = max(1, EPOCHS[args.data] // (2 if args.quick else 1))


def run(args: argparse.Namespace, found: images.Images) -> int:
    """The demonstration itself, on checked arguments."""
    began = time.perf_counter()
    bars = not args.no_progress
    classes = torch.tensor(sorted(args.classes))
    x, y = found.train
    gone = torch.isin(y, classes)
    forget, retain = (x[gone], y[gone]), (x[~gone], y[~gone])

    batch_size = 64 if len(y) <= 10_000 else 128
    options = {"epochs": args.epochs, "seed": args.seed, "batch_size": batch_size, "progress": bars}
    original = build(args.net, *found.shape, seed=args.seed).to(args.device)
    retrained = copy.deepcopy(original)
    seconds = {
        "train": train(original, found.train, label="train the original", **options),
        "retrain": train(retrained, retain, label="retrain without the class", **options),
    }
    nonmember, test = _halves(found.test) if args.method in NEED_NONMEMBERS else (None, found.test)
    result = _unlearn(args, original, bars, retain=retain, test=test, forget=forget if nonmember else None, nonmember=nonmember)
    seconds["unlearn"] = result.seconds if args.method != "none" else 0.0
    report = audit(
        {"original": original, "unlearned": result.model, "retrained": retrained},
        forget=forget,
        retain=retain,
        test=test,
        controls=True,
        seed=args.seed,
        progress=bars,
    )
    seconds["audit"] = report.settings["seconds"]
    forgot, why = _judge(report, result)
    facts = {
        "data": f"{found.name}: {len(y)} training and {len(found.test[1])} test images from {found.source}",
        "network": f"{type(original).__name__}, {sum(w.numel() for w in original.parameters()):,} weights",
        "training": f"{args.epochs} epochs of Adam, batches of {batch_size}, seed {args.seed}; the "
        "retrained model starts from the same weights",
        "method": args.method,
        **{f"method, {key}": str(value) for key, value in result.receipt.get("chosen", {}).items()},
        "method, weights before": result.receipt["weights_sha256"]["before"],
        "method, weights after": result.receipt["weights_sha256"]["after"],
        "device": f"{args.device}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}",
    }
    names = ", ".join(found.class_names[c] for c in classes.tolist())
    page = args.out / "report.html"
    report.to_html(
        page,
        title=f"Forgetting {'class' if len(classes) == 1 else 'classes'} {names} of {found.name}",
        facts=facts,
        noise=_noise(args, found, original, result),
        timing={k: seconds[k] for k in ("train", "retrain", "unlearn")},
        class_names=found.class_names,
        images={"forget": forget[0]},
    )
    receipt, weights = args.out / "receipt.json", args.out / "unlearned.pt"
    report.write_receipt(receipt, result, ids=gone.nonzero()[:, 0].tolist(), facts={k: facts[k] for k in ("data", "network", "training")})
    save_weights(weights, result.model)
    seconds["total"] = time.perf_counter() - began
    if args.json:
        write_json(args.json, _summary(args, report, seconds, forgot, why, facts))
    print(_text(args, found, report, seconds, forgot, why))
    print(f"report: {page}, receipt: {receipt}" + (f", figures: {args.json}" if args.json else ""))
    print(f"python -m fastforget verify {shlex.quote(str(receipt))} --model {shlex.quote(str(weights))}")
    return 0 if forgot else 1


def _halves(data: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Every other sample of each class, and the rest."""
    x, y = data
    first = torch.zeros(len(y), dtype=torch.bool)
    for c in y.unique():
        first[(y == c).nonzero()[::2, 0]] = True
    return (x[first], y[first]), (x[~first], y[~first])


def _unlearn(args: argparse.Namespace, original: nn.Module, bars: bool, **sets: Any) -> UnlearnResult:
    """UNSIR is steered by retained data alone; the test samples of the classes measure what a run reached."""
    with warnings.catch_warnings():
        # A run that did not forget is said at the end, and by the exit status.
        warnings.simplefilter("ignore", NotForgottenWarning)
        return unlearn(original, args.method, classes=sorted(args.classes), **sets, seed=args.seed, progress=bars)


def _noise(
    args: argparse.Namespace,
    found: images.Images,
    original: nn.Module,
    result: UnlearnResult,
    count: int = 12,
) -> dict[str, Tensor]:
    """The first of the noise images that the run learned: the same seed and model give them again."""
    if args.method != "unsir":
        return {}
    options = unsir.UNSIR(noise_batch=count, l2=result.receipt["chosen"]["l2"])
    classes = sorted(args.classes)
    work, device = copy.deepcopy(original), torch.device(args.device)
    task = Task(work, lambda m, x: m(x), classes, found.shape[2], device, args.seed, False, None, None, None)
    learned = unsir.learn_noise(options, task, classes, Place(found.train[0][0]))
    pairs = zip(classes, learned.images.split(count), strict=True)
    return {f"class {found.class_names[c]}": part.cpu() for c, part in pairs}


def _judge(report: AuditReport, result: UnlearnResult) -> tuple[bool, str]:
    accuracy = report.row("unlearned")["accuracy"]["test_forget"]
    measured = f"test accuracy on the forgotten classes is {percent(accuracy)}"
    if not accuracy <= GONE:
        return False, f"{measured}, over {percent(GONE)}; {result.why}"
    return result.forgot, f"{measured}, at most {percent(GONE)}; {result.why}"


def save_weights(path: Path, model: nn.Module) -> None:
    """The model's state_dict, whole or not at all (OSError)."""
    held = io.BytesIO()
    torch.save(model.state_dict(), held)
    write_whole(path, held.getvalue())


def speedup(seconds: dict[str, float]) -> float:
    return seconds["retrain"] / seconds["unlearn"] if seconds["unlearn"] > 0 else math.nan


def _summary(
    args: argparse.Namespace,
    report: AuditReport,
    seconds: dict[str, float],
    forgot: bool,
    why: str,
    facts: dict[str, str],
) -> dict[str, Any]:
    rows = [
        {
            "model": row["model"],
            "forget_accuracy": row["accuracy"]["test_forget"],
            "retain_accuracy": row["accuracy"]["test_retain"],
            "train_forget_accuracy": row["accuracy"]["forget"],
            "train_retain_accuracy": row["accuracy"]["retain"],
            "test_accuracy": row["accuracy"]["test"],
            "loss_attack_auc": row["attacks"]["forget_vs_test"]["loss"]["auc"],
            "forgetting_rate": row["forgetting_rate"],
            "weight_distance": row["weight_distance"].get("original", {}).get("total", 0.0),
            "status": row["status"],
        }
        for row in report.rows
    ]
    settings = {
        "data": args.data,
        "net": args.net,
        "method": args.method,
        "classes": args.classes,
        "seed": args.seed,
        "epochs": args.epochs,
        **{f"about_{key}": value for key, value in facts.items()},
    }
    return {
        "rows": rows,
        "seconds": seconds,
        "speedup": speedup(seconds),
        "forgot": forgot,
        "why": why,
        "verdict": report.verdict,
        "reasons": report.reasons,
        "controls": report.controls,
        "settings": settings,
        "definitions": DEFINITIONS,
    }


def _text(
    args: argparse.Namespace,
    found: images.Images,
    report: AuditReport,
    seconds: dict[str, float],
    forgot: bool,
    why: str,
) -> str:
    steps = {"original": "train", "unlearned": "unlearn", "retrained": "retrain"}
    many = len(args.classes) > 1
    lines = [
        (
            f"forgotten class{'es' if many else ''}, test accuracy",
            lambda r: percent(r["accuracy"]["test_forget"]),
        ),
        ("kept classes, test accuracy", lambda r: percent(r["accuracy"]["test_retain"])),
        (
            "loss attack AUC, forgotten against unseen",
            lambda r: number(r["attacks"]["forget_vs_test"]["loss"]["auc"]),
        ),
        ("forgetting rate", lambda r: percent(r["forgetting_rate"])),
        (
            "relative weight distance from the original",
            lambda r: number(r["weight_distance"].get("original", {}).get("relative")),
        ),
        ("seconds", lambda r: f"{seconds[steps[r['model']]]:.2f}"),
        ("by the audit's rule", lambda r: r["status"]),
    ]
    left = max(len(label) for label, _ in lines)
    out = [
        f"{found.name}, {args.net}, class{'es' if many else ''} {', '.join(map(str, args.classes))}, "
        f"method {args.method}, seed {args.seed}",
        "",
        " " * left + "".join(f"{r['model']:>12}" for r in report.rows),
    ]
    out += [f"{label:<{left}}" + "".join(f"{show(r):>12}" for r in report.rows) for label, show in lines]
    out += ["", f"{'FORGOT' if forgot else 'DID NOT FORGET'}: {why}"]
    if seconds["unlearn"] > 0:
        ratio = speedup(seconds)
        out.append(
            f"Unlearning took {seconds['unlearn']:.2f} s, retraining {seconds['retrain']:.2f} s: "
            + (f"{ratio:.1f} times as fast." if ratio >= 1 else f"{1 / ratio:.1f} times as slow, on a task this small.")
        )
    out += [f"Audit: {reason}" for reason in report.row("unlearned")["reasons"] if not reason.startswith("PASS")]
    trusted = all(entry["behaved"] for entry in report.controls.values())
    said = ", ".join(f"{name} {entry['status']}" for name, entry in report.controls.items())
    out.append(f"Controls: {said}: {'as they must' if trusted else 'NOT as they must, this audit tells nothing'}.")
    return "\n".join(out)
