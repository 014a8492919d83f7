"""Shadow models: seconds and memory of ``ff.audit.shadows`` against training one by one and keeping all logits; and of scoring from files.

    python -m fastforget._bench.shadows models --net mlp --out FILE.json     64 models of MNIST 5k, each way in a process of its own
    python -m fastforget._bench.shadows stack --out FILE.json                a step of one model against a step of a stack, by network
    python -m fastforget._bench.shadows shared --out FILE.json               16 models by 1, 2 and 4 processes that share a folder, or ranks
    python -m fastforget._bench.shadows scores --out FILE.json               256 models x 50k samples x 18 queries from files: memory

Seconds are CPU seconds of the process (which other load on the machine moves little) and wall seconds; memory is the process's peak above
what it held before (after a small warm-up).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget._files import write_whole
from fastforget._identity import digest
from fastforget._random import own_randomness
from fastforget.auditing.shadow.design import membership, model_seed
from fastforget.auditing.shadow.stack import Recipe, train_one, train_stack
from fastforget.demo import data, nets
from fastforget.ops.membership import lira, membership_scores, rmia, roc_bootstrap

from . import machine

NETS = {"mlp": nets.MLP, "cnn": nets.PlainCNN, "resnet": nets.SmallResNet}
EPOCHS, LR, BATCH = 10, 2e-3, 64


def _measured(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    machine.forget_peak()
    before, wall, cpu = machine.resident("VmRSS"), time.perf_counter(), time.process_time()
    result = call()
    spent = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return result, {**spent, "mb_before": before, "peak_mb_above": machine.resident("VmHWM") - before}


def net(name: str, seed: int) -> nn.Module:
    with own_randomness(seed):
        return NETS[name](1, 28, 10)


def ours(name: str, images: data.Images, n: int, stack: Any) -> dict[str, Tensor]:
    """Streamed."""
    held = ff.audit.shadows(
        lambda seed: net(name, seed), images.train, n, epochs=EPOCHS, lr=LR, batch_size=BATCH, population=images.test, stack=stack
    )
    return _attacked(name, images, held.score, held.locate)


def one_by_one(name: str, images: data.Images, n: int, _: Any) -> dict[str, Tensor]:
    """The usual way: train, keep every model's logits, score from what was kept."""
    (x, y), (xz, yz) = images.train, images.test
    member, recipe = membership(n, len(y), 0), Recipe.for_pool(len(y), EPOCHS, LR, BATCH, None)
    logits, logits_z = [], []
    for i in range(n):
        model, seed = net(name, model_seed(0, i)), model_seed(0, i)
        train_one(model, x, y, member[i].nonzero()[:, 0], seed, recipe, lambda _: None)
        with torch.no_grad():
            model.eval()
            logits.append(torch.cat([model(part) for part in x.split(256)]))
            logits_z.append(torch.cat([model(part) for part in xz.split(256)]))
        print(f"one by one: {i + 1}/{n}", file=sys.stderr)
    kept = membership_scores(torch.stack(logits), y.expand(n, -1))
    kept_z = membership_scores(torch.stack(logits_z), yz.expand(n, -1))

    def score(attack: str, *, index: Tensor, logit_confidence: Any = None, loss: Any = None, population_loss: Any = None) -> Tensor:
        if attack == "lira":
            return lira(logit_confidence.double(), kept.logit_confidence.double(), member, variance="auto")
        return rmia(-loss.double(), -kept.loss.double(), -population_loss.double(), -kept_z.loss.double(), member=member)

    return _attacked(name, images, score, lambda pair: torch.arange(len(pair[1])))


def _attacked(name: str, images: data.Images, score: Callable[..., Tensor], locate: Callable[..., Tensor]) -> dict[str, Tensor]:
    """LiRA and RMIA of a target trained on a half that no shadow model was trained on."""
    (x, y), (xz, yz) = images.train, images.test
    inside = membership(1, len(y), 999)[0]
    target = net(name, 999)
    train_one(target, x, y, inside.nonzero()[:, 0], 999, Recipe.for_pool(len(y), EPOCHS, LR, BATCH, None), lambda _: None)
    with torch.no_grad():
        target.eval()
        on, off = membership_scores(target(x), y), membership_scores(target(xz), yz)
    index = locate((x, y))
    return {
        "member": inside,
        "lira": score("lira", index=index, logit_confidence=on.logit_confidence),
        "rmia": score("rmia", index=index, loss=on.loss, population_loss=off.loss),
    }


WAYS: dict[str, tuple[Callable[..., dict[str, Tensor]], Any]] = {
    "one by one, logits kept": (one_by_one, None),
    "ff.audit.shadows": (ours, "auto"),
    "ff.audit.shadows, stack=8": (ours, 8),
}


def _child(pipe: Any, way: str, name: str, n: int, threads: int) -> None:
    torch.set_num_threads(threads)
    call, stacked = WAYS[way]
    images = data.load("mnist5k")
    # what torch itself takes up at first use belongs to neither way
    train_one(net(name, 0), *images.test, torch.arange(2 * BATCH), 0, Recipe.for_pool(4 * BATCH, 1, LR, BATCH, None), lambda _: None)
    attacked, spent = _measured(lambda: call(name, images, n, stacked))
    pipe.send({"way": way, **spent, "scores": {k: v.tolist() for k, v in attacked.items()}})


def models(args: argparse.Namespace) -> dict[str, Any]:
    rows, scores = [], {}
    for way in [w for w in WAYS if args.ways is None or w in args.ways]:
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_child, args=(there, way, args.net, args.n, args.threads))
        process.start()
        there.close()
        row = here.recv()
        process.join()
        scores[way] = {k: torch.tensor(v) for k, v in row.pop("scores").items()}
        row |= {"net": args.net, "n": args.n, "threads": args.threads, "epochs": EPOCHS}
        row["parameters"] = sum(p.numel() for p in net(args.net, 0).parameters())
        for attack in ("lira", "rmia"):
            inside = scores[way]["member"]
            got = scores[way][attack].double()
            r = roc_bootstrap(got[inside], got[~inside], fprs=(1e-2,), seed=0)
            row[attack] = {"auc": [float(v) for v in (r.auc, r.auc_low, r.auc_high)]}
            row[attack] |= {"tpr_at_1pct_fpr": [float(v[0]) for v in (r.tpr, r.tpr_low, r.tpr_high)]}
            first = next(iter(scores.values()))[attack]
            row[attack]["largest_difference_from_first_row"] = float((got - first).abs().max())
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if not isinstance(v, dict)}), file=sys.stderr)
    return {"rows": rows}


def _small_mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def stack(args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of one model's epoch, alone and in a stack, forward, backward and step; the best of three."""
    torch.set_num_threads(args.threads)
    cases: list[tuple[str, int, Callable[[], nn.Module]]] = [(f"MLP 64-{w}-10", 8, lambda w=w: _small_mlp(w)) for w in (16, 64, 128, 512)]  # type: ignore[misc]
    cases += [(f"CNN of width {w}, 8x8", 8, lambda w=w: nets.PlainCNN(1, 8, 10, w)) for w in (2, 4, 8, 16)]  # type: ignore[misc]
    cases += [("demo's MLP, 28x28", 28, lambda: nets.MLP(1, 28, 10)), ("demo's CNN, 28x28", 28, lambda: nets.PlainCNN(1, 28, 10))]
    rows = []
    for label, size, make in cases:
        x, y = torch.randn(512, 1, size, size), torch.randint(0, 10, (512,))
        recipe, half = Recipe.for_pool(512, 1, LR, BATCH, None), torch.arange(256)
        row: dict[str, Any] = {"net": label, "parameters": sum(p.numel() for p in make().parameters()), "threads": args.threads}

        def spent(count: int) -> float:
            best = float("inf")
            for _ in range(3):
                made = [make() for _ in range(count)]  # noqa: B023
                began = time.process_time()
                if count == 1:
                    train_one(made[0], x, y, half, 0, recipe, lambda _: None)  # noqa: B023
                else:
                    train_stack(made, x, y, [half] * count, list(range(count)), recipe, lambda _: None)  # noqa: B023
                best = min(best, (time.process_time() - began) / recipe.steps / count)  # noqa: B023
            return best

        alone = row["ms_a_step_alone"] = spent(1) * 1e3
        row["speedup_by_stack"] = {str(s): alone / (spent(s) * 1e3) for s in (4, 16, 64) if s * row["parameters"] < 2e7}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return {"rows": rows}


def scores(args: argparse.Namespace) -> dict[str, Any]:
    """Scores of M models in files, far more than may be in memory, through ``python -m fastforget score``."""
    m, n, a = args.n, 50_000, 18
    with tempfile.TemporaryDirectory(dir=args.root) as folder:
        place = Path(folder)
        _score_files(place, m, n, a)
        size = sum(f.stat().st_size for f in place.rglob("*.npy")) / 2**20
        rows = []
        for attacks in (["lira"], ["lira", "lira_offline", "attack_r"], ["rmia"]):
            here, there = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(target=_scores_child, args=(there, str(place), attacks, args.threads))
            process.start()
            there.close()
            row = {**here.recv(), "attacks": attacks, "models": m, "samples": n, "queries": a, "input_mb": size, "threads": args.threads}
            process.join()
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
    return {"rows": rows}


def shared(args: argparse.Namespace) -> dict[str, Any]:
    """Models of one folder by several processes: wall seconds of the slowest, CPU seconds of all, who trained how many."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for how in ("folder", "ranks"):
        for count in (1, 2, 4):
            with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1] if how == "ranks" else None
                probe.close()
                barrier, answers = context.Barrier(count), context.Queue()
                given = [(rank, count, port, folder, args.n, args.threads, barrier, answers) for rank in range(count)]
                processes = [context.Process(target=_sharer, args=one) for one in given]
                for process in processes:
                    process.start()
                made = [answers.get(timeout=600) for _ in processes]
                for process in processes:
                    process.join()
            row = {"how": how, "processes": count, "models": args.n, "threads": args.threads}
            row |= {"wall_seconds": max(one["wall_seconds"] for one in made), "cpu_seconds": sum(one["cpu_seconds"] for one in made)}
            rows.append({**row, "trained": sorted(one["trained"] for one in made), "sha256": sorted({one["sha256"] for one in made})})
            print(json.dumps(rows[-1]), file=sys.stderr)
    return {"rows": rows, "equal_bytes": len({one for row in rows for one in row["sha256"]}) == 1}


def _sharer(rank: int, count: int, port: int | None, folder: str, n: int, threads: int, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(threads)
    if port is not None:
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    g = torch.Generator().manual_seed(0)
    y = torch.arange(2000) % 10
    x = torch.randn(10, 1, 28, 28, generator=g)[y] + 2 * torch.randn(2000, 1, 28, 28, generator=g)
    seeds: list[int] = []

    def train(model: nn.Module, own: tuple[Tensor, Tensor], seed: int) -> None:
        seeds.append(seed)
        train_one(model, *own, torch.arange(len(own[1])), seed, Recipe.for_pool(len(y), EPOCHS, LR, BATCH, None), lambda _: None)

    def call(place: str, models: int, data: tuple[Tensor, Tensor]) -> ff.audit.Shadows:
        return ff.audit.shadows(lambda seed: net("mlp", seed), data, models, train=train, out=place)

    call(f"{folder}/warm", 2 * count, (x[:64], y[:64]))
    seeds.clear()
    barrier.wait()
    held, spent = _measured(lambda: call(f"{folder}/out", n, (x, y)))
    answers.put({**spent, "trained": len(seeds), "sha256": digest(held.tensors())})
    if port is not None:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _score_files(place: Path, models: int, samples: int, queries: int) -> None:
    """Logit-scaled confidences, float32: members lie one standard deviation higher."""
    rng = np.random.default_rng(0)
    (place / "shadows").mkdir()
    keep, members = rng.random((models, samples)) < 0.5, rng.random(samples) < 0.5
    np.save(place / "keep.npy", keep)
    np.save(place / "members.npy", members)
    np.save(place / "labels.npy", np.zeros(samples, np.int64))
    np.save(place / "target.npy", rng.standard_normal((samples, queries), np.float32) + members[:, None].astype(np.float32))
    for i in range(models):
        scores = rng.standard_normal((samples, queries), np.float32) + keep[i, :, None].astype(np.float32)
        np.save(place / "shadows" / f"{i:04d}.npy", scores)


def _scores_child(pipe: Any, place: str, attacks: list[str], threads: int) -> None:
    from fastforget.auditing.arrays import score

    torch.set_num_threads(threads)

    def run(folder: str) -> int:
        files = ["--logits", f"{folder}/target.npy", "--labels", f"{folder}/labels.npy", "--shadow-logits", f"{folder}/shadows"]
        files += ["--keep", f"{folder}/keep.npy", "--members", f"{folder}/members.npy", "--scores", "--out", f"{folder}/out.npz"]
        return score.main([*files, "--attack", *attacks, "--resamples", "200"])

    # what torch itself takes up at first use is not the scoring's
    with tempfile.TemporaryDirectory() as small:
        _score_files(Path(small), 64, 200, 2)
        run(small)
    status, spent = _measured(lambda: run(place))
    pipe.send({"exit": status, **spent})


def main() -> int:
    p = argparse.ArgumentParser(
        prog="python -m fastforget._bench.shadows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("what", choices=("models", "stack", "shared", "scores"))
    p.add_argument("--net", choices=tuple(NETS), default="mlp")
    p.add_argument("--n", type=int, help="models (default: 64; shared: 16; scores: 256)")
    p.add_argument("--ways", nargs="+", choices=tuple(WAYS))
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--root", help="where scores puts its files, 1 GB (default: the system's folder for such)")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    args.n = args.n or {"scores": 256, "shared": 16}.get(args.what, 64)
    result = {"models": models, "stack": stack, "shared": shared, "scores": scores}[args.what](args)
    write_whole(args.out, json.dumps({"what": args.what, **result, "machine": machine.facts()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
