"""The audit with shadow models from end to end: original, every method and retrained, attacked by LiRA, RMIA and U-LiRA, with intervals.

    python -m fastforget._bench.shadow_audit --state FOLDER --out FILE.json --page PAGE.html    run; after a kill, again: it goes on
    python -m fastforget._bench.shadow_audit --out FILE.json --markdown                         only print a run's figures, as Markdown

MNIST 5k, the demonstration's MLP. Half of the training images (the pool) trains the target, of which a random few are to be forgotten; the
other half is unseen. Every shadow model, too, is trained on half of the pool, and then unlearns as many samples as the target has to, which
is what U-LiRA asks for. U-LiRA knows the method, so each method is attacked with shadow models that unlearned by it (--shadow-method);
where there are none, and for original and retrained, with those of the first method named, which serve all other attacks as well.
The test images are shared out: RMIA's population, and the data never seen that the methods may use.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget._files import jsonable, write_whole
from fastforget._random import own_randomness
from fastforget.auditing.report import AuditReport
from fastforget.auditing.shadow.design import model_seed
from fastforget.auditing.shadow.stack import Recipe, train_one
from fastforget.demo import data, nets
from fastforget.methods.pack import STANDARD

from . import machine
from .shadows import _measured

Pair = tuple[Tensor, Tensor]
LR, BATCH = 2e-3, 64
KEPT = ("model", "accuracy", "accuracy_intervals", "attacks", "forgetting_rate", "forgetting_rate_interval", "status", "reasons")
SPENT = "spent.json"
ATTACKS = ("loss", "lira", "lira_offline", "rmia", "u_lira")
# the row's name -> what ff.unlearn is asked for
METHODS: dict[str, dict[str, Any]] = {
    "unsir samples": {"method": "unsir", "preset": "samples"},
    "forsaken": {"method": "forsaken"},
    "lightweight": {"method": "lightweight"},
    "sweep": {"method": "sweep"},
    # CT transposes convolutions, which this net has none of
    **{name: {"method": name} for name, kind in STANDARD.items() if kind.scope != "classes" and name != "ct"},
}
MARKDOWN: tuple[tuple[str, str, str, bool], ...] = (
    ("loss AUC", "loss", "auc", False),
    ("LiRA AUC", "lira", "auc", False),
    ("LiRA TPR at 1 % FPR", "lira", "tpr_at_1pct_fpr", True),
    ("offline LiRA AUC", "lira_offline", "auc", False),
    ("RMIA AUC", "rmia", "auc", False),
    ("U-LiRA balanced accuracy", "u_lira", "balanced_accuracy_at_half", False),
)


@dataclass
class Request:
    """Who is trained on what, and what is to be forgotten."""

    pool: Pair  # of the shadow models: members (forget and retain) and unseen
    members: Tensor  # positions in the pool
    forget_at: Tensor
    retain_at: Tensor
    candidates: Tensor  # of which each shadow model unlearns half of its own: about as many as the target
    test: Pair
    population: Pair
    nonmember: Pair

    @property
    def forget(self) -> Pair:
        return pick(self.pool, self.forget_at)

    @property
    def retain(self) -> Pair:
        return pick(self.pool, self.retain_at)


def _step(method: str) -> str:
    return f"shadow models, {method}"


def pick(pair: Pair, at: Tensor) -> Pair:
    return pair[0][at], pair[1][at]


def request(images: data.Images, forget: int, seed: int) -> Request:
    """Random samples of a target that is trained on half of the training images, as the shadow models are."""
    generator = torch.Generator().manual_seed(seed)
    total = len(images.train[1])
    members, unseen = torch.randperm(total, generator=generator).split([total // 2, total - total // 2])
    if not 0 < forget <= len(members) // 3:
        raise ValueError(f"forget: got {forget}; accepted is 1 to {len(members) // 3}, a third of the {len(members)} samples trained on")
    population, nonmember = torch.randperm(len(images.test[1]), generator=generator).tensor_split(2)
    return Request(
        pool=images.train,
        members=members,
        forget_at=members[:forget],
        retain_at=members[forget:],
        # a shadow model is trained on half of the candidates and unlearns half of those
        candidates=torch.cat((members[:forget], unseen[: 3 * forget])),
        test=pick(images.train, unseen),
        population=pick(images.test, population),
        nonmember=pick(images.test, nonmember),
    )


def unlearn(model: nn.Module, name: str, forget: Pair, retain: Pair, nonmember: Pair, seed: int) -> ff.methods.UnlearnResult:
    """One method at its defaults. That it may not forget is what the audit is to find out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.methods.NotForgottenWarning)
        return ff.unlearn(model, **METHODS[name], forget=forget, retain=retain, nonmember=nonmember, seed=seed, progress=False)


class Run:
    """The steps of the audit, each measured."""

    def __init__(
        self, images: data.Images, *, forget: int, n: int, epochs: int, seed: int, methods: list[str], by: list[str], state: Path | None,
    ) -> None:  # fmt: skip
        self.request, self.shape = request(images, forget, seed), images.shape
        self.n, self.epochs, self.seed, self.state = n, epochs, seed, state
        self.methods, self.by = list(dict.fromkeys(methods)), list(dict.fromkeys(by))
        self.spent: dict[str, dict[str, float]] = {}
        self.results: dict[str, ff.methods.UnlearnResult] = {}
        self.matched: dict[str, AuditReport] = {}
        self.untimed = 0  # shadow models of a run that was cut off, whose time nobody wrote down

    def measured(self, what: str, call: Callable[[], Any]) -> Any:
        result, self.spent[what] = _measured(call)
        print(f"{what}: {self.spent[what]['wall_seconds']:.1f} s", file=sys.stderr)
        return result

    def net(self, seed: int) -> nn.Module:
        return nets.build("mlp", *self.shape, seed)

    def trained(self, at: Tensor, which: int) -> nn.Module:
        """As the shadow models are trained, on the samples at these positions of the pool; ``which``: a negative number, so that its seed
        is no shadow model's."""
        seed = model_seed(self.seed, which)
        model = self.net(seed)
        recipe = Recipe.for_pool(len(self.request.pool[1]), self.epochs, LR, BATCH, None)
        train_one(model, *self.request.pool, at, seed, recipe, lambda _: None)
        return model.eval()

    def models(self) -> dict[str, nn.Module]:
        """Original, each method's, retrained."""
        r = self.request
        models = {"original": self.measured("original", lambda: self.trained(r.members, -1))}
        for name in self.methods:
            given = (models["original"], name, r.forget, r.retain, r.nonmember, self.seed)
            self.results[name] = self.measured(name, lambda given=given: unlearn(*given))
            models[name] = self.results[name].model.eval()
        models["retrained"] = self.measured("retrained", lambda: self.trained(r.retain_at, -2))
        return models

    def shadows(self, method: str) -> ff.audit.Shadows:
        """Shadow models that unlearned by the method; their state and what they took are in a folder of their own."""
        r, what = self.request, _step(method)

        def forgetting(model: nn.Module, forget: Pair, retain: Pair, seed: int) -> nn.Module:
            return unlearn(model, method, forget, retain, r.nonmember, seed).model

        # the state of a folder is told from others by this name
        forgetting.__qualname__ = f"{method}, defaults"
        folder = None if self.state is None else self.state / method.replace(" ", "-")
        before = ff.audit.Shadows.load(folder).n_models if folder is not None and any(folder.glob("shadows-*.safetensors")) else 0
        training = {"epochs": self.epochs, "lr": LR, "batch_size": BATCH, "seed": self.seed, "out": folder}
        unlearning = {"unlearn": forgetting, "unlearn_pool": r.candidates, "population": r.population}
        held = self.measured(what, lambda: ff.audit.shadows(self.net, r.pool, self.n, **training, **unlearning))
        if folder is not None and before == self.n and (folder / SPENT).exists():
            self.spent[what] = json.loads((folder / SPENT).read_text())
        elif folder is not None and not before:
            write_whole(folder / SPENT, json.dumps(self.spent[what]) + "\n")
        else:
            self.untimed += before
        return held

    def audit(self) -> AuditReport:
        """All attacks; then, for every further method that shadow models unlearned by, its row's U-LiRA with those."""
        models, first = self.models(), self.shadows(self.by[0])
        report = self.measured("audit", lambda: self._audit(models, first, ATTACKS, controls=True))
        for method in self.by[1:]:
            few = {name: models[name] for name in ("original", method, "retrained")}
            held = self.shadows(method)
            self.matched[method] = self._audit(few, held, ("u_lira",), controls=False)
        return report

    def _audit(self, models: dict[str, nn.Module], held: ff.audit.Shadows, attacks: tuple[str, ...], controls: bool) -> AuditReport:
        r = self.request
        sets = {"forget": r.forget, "retain": r.retain, "test": r.test}
        population = r.population if "rmia" in attacks else None
        return ff.audit(models, **sets, shadows=held, population=population, attacks=attacks, controls=controls, seed=self.seed)

    def facts(self) -> dict[str, Any]:
        r = self.request
        sizes = {name: len(getattr(r, name)[1]) for name in ("pool", "forget", "retain", "test", "population", "nonmember")}
        return {
            "net": "demo's MLP",
            "parameters": sum(p.numel() for p in self.net(0).parameters()),
            "shadow_models": self.n,
            "shadow_models_untimed": self.untimed,
            "shadow_models_unlearn_by": self.by,
            "samples_a_shadow_model_unlearns": f"about {len(r.candidates) // 4}, half of its own among {len(r.candidates)}",
            "epochs": self.epochs,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "sizes": sizes,
            "methods": {n: {**METHODS[n], "forgot": result.forgot, "why": result.why} for n, result in self.results.items()},
        }


def summary(run: Run, report: AuditReport) -> dict[str, Any]:
    """What is worth keeping: the report without its curves and probes, and what it took."""
    whole = report.to_dict()
    kept = {key: whole[key] for key in ("verdict", "reasons", "controls", "settings")}
    kept |= {name: [{key: row[key] for key in KEPT} for row in whole[name]] for name in ("rows", "control_rows")}
    matched = {method: {row["model"]: row["attacks"]["forget_vs_test"]["u_lira"] for row in of.rows} for method, of in run.matched.items()}
    total = {key: sum(spent[key] for spent in run.spent.values()) for key in ("wall_seconds", "cpu_seconds")}
    total |= {"mb_before": run.spent["original"]["mb_before"]}
    total |= {"peak_mb": max(spent["mb_before"] + spent["peak_mb_above"] for spent in run.spent.values())}
    result = {"what": "shadow audit", **run.facts(), "spent": {**run.spent, "all": total}, "u_lira_matched": matched, **kept}
    return jsonable({**result, "machine": machine.facts()})


def markdown(result: dict[str, Any]) -> str:
    """Models x attacks, forget against unseen, each figure with its 95 % interval."""
    lines = ["| model | " + " | ".join(title for title, *_ in MARKDOWN) + " | verdict |", "|---|" + "---|" * (len(MARKDOWN) + 1)]
    for row in result["rows"]:
        attacks = dict(row["attacks"]["forget_vs_test"])
        attacks["u_lira"] = result["u_lira_matched"].get(row["model"], {}).get(row["model"], attacks["u_lira"])
        cells = [_cell(attacks[attack], key, share) for _, attack, key, share in MARKDOWN]
        lines.append(f"| {row['model']} | {' | '.join(cells)} | {row['status']} |")
    return "\n".join([*lines, "", _spent(result)])


def _spent(result: dict[str, Any]) -> str:
    n, untimed, whole = result["shadow_models"], result["shadow_models_untimed"], result["spent"]["all"]
    sets = [f"by {method} {result['spent'][_step(method)]['cpu_seconds']:.0f}" for method in result["shadow_models_unlearn_by"]]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    controls = ", ".join(f"{name} {control['status']}" for name, control in result["controls"].items())
    return (
        f"{n} shadow models, trained and each unlearned (seconds: {', '.join(sets)}). All steps: {whole['cpu_seconds']:.0f} s of CPU "
        f"on {threads}, peak {whole['peak_mb']:.0f} MB"
        f"{f'; without the time of {untimed} models of a run that was cut off' if untimed else ''}. Controls: {controls}."
    )


def _cell(figures: dict[str, Any], key: str, share: bool) -> str:
    value, interval = figures.get(key), figures.get(f"{key}_interval")
    if value is None:
        return "-"
    text = f"{100 * value:.1f} %" if share else f"{value:.3f}"
    if interval is None:
        return text
    low, high = (f"{100 * end:.1f}" if share else f"{end:.3f}" for end in interval)
    return f"{text} [{low}, {high}]"


def page(run: Run, report: AuditReport, path: Path, images: data.Images) -> None:
    facts = {"data": images.name, "network": "MLP", "shadow models": f"{run.n}, each trained on {len(run.request.members)} samples"}
    facts |= {"U-LiRA": f"its shadow models unlearned by {run.by[0]}, on average {len(run.request.candidates) // 4} samples each"}
    steps = {"original": "train", "retrained": "retrain"}  # as the page calls them
    facts["seconds"] = "of CPU, which other work on the machine moves little"
    timing = {steps.get(name, name): spent["cpu_seconds"] for name, spent in run.spent.items()}
    shown = {"facts": facts, "timing": timing, "class_names": images.class_names, "images": {"forget": run.request.forget[0]}}
    report.to_html(path, title="Audit with shadow models", **shown)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m fastforget._bench.shadow_audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", choices=("mnist5k", "digits"), default="mnist5k")
    p.add_argument("--n", type=int, default=64, help="shadow models")
    p.add_argument("--forget", type=int, default=200, help="samples to forget")
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--method", choices=tuple(METHODS), nargs="+", default=list(METHODS), help="what is attacked (all)")
    p.add_argument("--shadow-method", choices=tuple(METHODS), nargs="+", default=["lightweight"], help="what shadow models unlearn by")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--state", type=Path, help="folder of the shadow models' state; a run that was cut off goes on from there")
    p.add_argument("--page", type=Path, help="write the report's page too")
    p.add_argument("--markdown", action="store_true", help="only print the table of --out, as Markdown")
    p.add_argument("--out", type=Path, required=True, help="the figures, JSON")
    args = p.parse_args(argv)
    if args.markdown:
        print(markdown(json.loads(args.out.read_text())))
        return 0
    torch.set_num_threads(args.threads)
    images = data.load(args.data)
    settings = {"forget": args.forget, "n": args.n, "epochs": args.epochs, "seed": args.seed, "methods": args.method}
    if other := set(args.shadow_method) - set(args.method):
        p.error(f"--shadow-method: {', '.join(sorted(other))} isn't among --method, so nothing would be attacked with it")
    run = Run(images, **settings, by=args.shadow_method, state=args.state)
    with own_randomness(args.seed):
        report = run.audit()
    print(report)
    result = {"data": images.name, **summary(run, report)}
    write_whole(args.out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if args.page is not None:
        page(run, report, args.page, images)
    print("\n" + markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
