"""Facts about invented people, inserted into texts, learned by small language models, and unlearned again; beside retraining.

    python -m fastforget._bench.facts                                    what is missing of the rows; resumable
    python -m fastforget._bench.facts --method npo rmu --seeds 0         a part of it
    python -m fastforget._bench.facts --nets FOLDER                      keeps trained nets there, for when it is stopped
    python -m fastforget._bench.facts --table                            the tables of the stored rows, as Markdown

Every method runs with its published constants, and once more with a learning rate chosen for such a net: of :data:`RATES` the
:func:`best` on another world (other people, facts and seed), never on the one that is reported. What was trained, inserted and
measured: ``facts_data.py``, ``facts_net.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import fastforget as ff
from fastforget._files import write_whole
from fastforget.adapters._texts import Texts
from fastforget.demo.data import DataMissing

from . import facts_data, facts_net, facts_page, machine
from .facts_data import World
from .facts_net import Plan, Trained

ROWS = Path(__file__).resolve().parent / "results" / "facts.json"
HOLDS = {"gradient_difference": ("labels", "anchor"), "npo": ("labels", "anchor"), "simnpo": ("labels", "anchor")}
HOLDS["rmu"] = ("states", "labels", "anchor")
PUBLISHED, CHOSEN = "published", "chosen"
RATES: dict[str, tuple[float, ...]] = dict.fromkeys(HOLDS, (3e-5, 1e-4, 3e-4, 1e-3))
RATES["rmu"] += (3e-3, 1e-2)  # its steps are few, and held by a weight of 1,200
FORGOTTEN = (0.25, 0.75)
TRIAL = 1  # seed of the world and net that rates are chosen on; reported are those of seed 0
AGAIN = (10, 11)  # seeds of the retrained nets
SEEDS = (0, 1, 2)


def loader(texts: Texts) -> DataLoader[Any]:
    return DataLoader(texts, batch_size=32, collate_fn=texts.collate)


def sets(world: World) -> dict[str, DataLoader[Any]]:
    """What a method is given: the facts to forget, the kept ones and as many texts, and facts of people who were never seen."""
    kept = world.facts["keep"]
    texts = Texts(world.texts["train"].samples[: len(kept)], range(len(kept)), kept.pad)
    parts = {"forget": world.facts["forget"], "retain": facts_data.joined(kept, texts), "nonmember": world.facts["given"]}
    return {name: loader(part) for name, part in parts.items()}


def row_of(net: nn.Module, world: World, key: tuple[str, str, str, int], retrained: nn.Module | None, lr: float | None) -> dict[str, Any]:
    """One run of a method, measured."""
    method, hold, rate, seed = key
    began = time.thread_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.NotForgottenWarning)
        options = {} if lr is None else {"lr": lr}
        result = ff.unlearn(net, method, **sets(world), hold=hold, seed=seed, progress=False, **options)
    seconds = time.thread_time() - began
    row = {"model": "unlearned", "method": method, "hold": hold, "rate": rate, "seed": seed, "lr": result.receipt["options"]["lr"]}
    row |= {"forgot": result.forgot, "passes": result.cost.passes, "seconds": round(seconds, 2)}
    return row | measured(result.model, world, retrained)


def measured(net: nn.Module, world: World, retrained: nn.Module | None) -> dict[str, float]:
    """Figures, rounded; with a retrained net TOFU's forget quality against it."""
    found = facts_net.figures(net, world)
    if retrained is not None:
        found["quality"] = facts_net.quality(net, retrained, world)
    return {name: float(f"{value:.4g}") if math.isfinite(value) else value for name, value in found.items()}


def lost(row: dict[str, Any], before: dict[str, Any]) -> float:
    """What a run loses of what is kept: of the kept facts' probability, and of the unseen texts' log-perplexity."""
    return max(0.0, before["p_keep"] - row["p_keep"]) + max(0.0, math.log(row["perplexity"] / before["perplexity"]))


def best(trials: Sequence[dict[str, Any]]) -> float:
    """The learning rate of the trial that loses least, of those that forget: where an attack tells forgotten facts from those of people
    never seen with an AUC within :data:`FORGOTTEN`. If none does, the AUC nearest to 0.5. Nothing retrained is asked."""
    forgetting = [row for row in trials if FORGOTTEN[0] <= row["auc"] <= FORGOTTEN[1]]
    if forgetting:
        return float(min(forgetting, key=lambda row: row["lost"])["lr"])
    return float(min(trials, key=lambda row: abs(row["auc"] - 0.5))["lr"])


def base(trained: Trained, model: str, seed: int, world: World, retrained: nn.Module | None) -> dict[str, Any]:
    """The row of a net that was trained, not unlearned."""
    row = {"model": model, "seed": seed, "passes": trained.passes, "seconds": round(trained.seconds, 2)}
    return row | measured(trained.net, world, retrained)


def cells(methods: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, str, int]]:
    """Method, hold, rate, seed; published constants once."""
    for method in methods:
        for hold in HOLDS[method]:
            yield method, hold, PUBLISHED, 0
            yield from ((method, hold, CHOSEN, seed) for seed in seeds)


class Run:
    """The stored rows, and nets that are trained when something needs them."""

    def __init__(self, out: Path, plan: Plan, sizes: dict[str, Any], corpus: Any = None, folder: Path | None = None) -> None:
        self.out, self.plan, self.sizes, self.corpus, self.folder = out, plan, sizes, corpus, folder
        self.stored: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"what": "facts", "trials": [], "rows": []}
        self.before: dict[str, float] = {}  # figures of the net that rates are tried on
        self.worlds: dict[int, World] = {}
        self.nets: dict[tuple[int, tuple[str, ...], int], Trained] = {}

    def world(self, seed: int) -> World:
        if self.corpus is None:
            self.corpus = facts_data.read()
        if seed not in self.worlds:
            self.worlds[seed] = facts_data.world(self.corpus, seed=seed, **self.sizes)
        return self.worlds[seed]

    def net(self, world: int, groups: tuple[str, ...], seed: int) -> Trained:
        key = (world, groups, seed)
        if key not in self.nets:
            file = self.folder / f"{world}-{'-'.join(groups)}-{seed}.pt" if self.folder else None
            if file and file.exists():
                self.nets[key] = facts_net.read(file, len(self.world(world).words), self.plan)
            else:
                self.nets[key] = facts_net.train(self.world(world), groups, seed, self.plan)
                if file:
                    facts_net.write(file, self.nets[key])
            print(f"{key}: {self.nets[key].passes} sample passes, {self.nets[key].seconds:.0f} s", file=sys.stderr, flush=True)
        return self.nets[key]

    def original(self, world: int) -> Trained:
        return self.net(world, ("forget", "keep"), world)

    def retrained(self, seed: int) -> Trained:
        return self.net(0, ("keep",), seed)

    def add(self, part: str, row: dict[str, Any]) -> None:
        self.stored[part].append(row)
        self.stored |= {"machine": machine.facts(), "plan": vars(self.plan), "world": facts_data.about(self.world(0))}
        print(row, flush=True)
        write_whole(self.out, json.dumps(self.stored, indent=1) + "\n")

    def bases(self) -> None:
        """The original and the retrained nets."""
        there = {(row["model"], row["seed"]) for row in self.stored["rows"]}
        for model, seed in (("original", 0), *(("retrained", seed) for seed in AGAIN)):
            if (model, seed) not in there:
                trained = self.original(0) if model == "original" else self.retrained(seed)
                against = self.retrained(AGAIN[1] if (model, seed) == ("retrained", AGAIN[0]) else AGAIN[0]).net
                self.add("rows", base(trained, model, seed, self.world(0), against))

    def rate(self, method: str, hold: str) -> float:
        """The chosen one, by trials that are kept with the rows."""
        tried = {row["lr"]: row for row in self.stored["trials"] if (row["method"], row["hold"]) == (method, hold)}
        for lr in RATES[method]:
            if lr not in tried:
                net, world = self.original(TRIAL).net, self.world(TRIAL)
                self.before = self.before or facts_net.figures(net, world)
                tried[lr] = row_of(net, world, (method, hold, CHOSEN, 0), None, lr)
                tried[lr]["lost"] = round(lost(tried[lr], self.before), 4)
                self.add("trials", tried[lr])
        return best([tried[lr] for lr in RATES[method]])

    def unlearned(self, cell: tuple[str, str, str, int]) -> None:
        names = ("method", "hold", "rate", "seed")
        if not any(tuple(row.get(name) for name in names) == cell for row in self.stored["rows"]):
            lr = self.rate(*cell[:2]) if cell[2] == CHOSEN else None
            self.add("rows", row_of(self.original(0).net, self.world(0), cell, self.retrained(AGAIN[0]).net, lr))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m fastforget._bench.facts", description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--method", nargs="+", choices=HOLDS, default=list(HOLDS))
    p.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    p.add_argument("--out", type=Path, default=ROWS)
    p.add_argument("--nets", type=Path, help="a folder")
    p.add_argument("--table", action="store_true", help="only print the tables")
    return p


def main(argv: Sequence[str] | None = None, plan: Plan | None = None, sizes: dict[str, Any] | None = None, corpus: Any = None) -> int:
    """Makes the rows that aren't there yet. ``plan``, ``sizes``, ``corpus``: for a small run."""
    args = parser().parse_args(argv)
    run = Run(args.out, plan or Plan(), sizes or {}, corpus, args.nets)
    if not args.table:
        torch.set_num_threads(1)
        try:
            run.bases()
            for cell in cells(args.method, args.seeds):
                run.unlearned(cell)
        except DataMissing as error:
            print(f"python -m fastforget._bench.facts: {error}", file=sys.stderr)
            return 2
    print(facts_page.section(run.stored))
    return 0


if __name__ == "__main__":
    sys.exit(main())
