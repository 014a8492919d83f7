"""``ff.audit.shadows``: trains shadow models and keeps the sums that the attacks read."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._caller import Caller
from ..._identity import digest
from ..._outputs import probabilities, reading, warn_of_probabilities
from ..._progress import Progress
from ..._progress import progress as progress_bar
from ..._random import own_randomness
from ..._ranks import OTHER_BYTES, Ranks
from ..._trial import first_step, trains_on_one
from ..._weights import device_of, eval_mode
from ...ops import _arguments as arg
from ...ops.membership import membership_scores
from ..measure import passes
from . import together
from .design import augments, half_to_forget, membership, model_seed
from .folder import Folder, share
from .parts import Answers, Made, Scores
from .pool import Pool
from .stack import Forward, Recipe, stack_size, train_one, train_stack, why_not_stacked
from .state import Shadows

Pair = tuple[Tensor, Tensor]
AUGMENTS = (
    "fastforget: dataset: the pool augments at random (its first samples, read twice, differ). The shadow models see each sample as it was "
    "read once, and an audit won't find its samples in the pool. Give the samples without random transforms; augmentations go into train= "
    "and queries="
)
MakeModel = Callable[[int], nn.Module]
Train = Callable[[nn.Module, Pair, int], None]
Unlearn = Callable[[nn.Module, Pair, Pair, int], nn.Module]


class _Work:
    """The checked arguments of one call of :func:`shadows`."""

    def __init__(self, make_model: MakeModel, pool: Pool, population: Pool | None, n: int, seed: int) -> None:
        self.make_model, self.pool, self.population, self.n, self.seed = make_model, pool, population, n, seed
        self.member = membership(n, len(pool), seed)
        self.train: Train | None = None
        self.unlearn: Unlearn | None = None
        self.candidates = torch.ones(len(pool), dtype=torch.bool)
        self.queries: Callable[[Tensor, int], Tensor] | None = None
        self.n_queries = 1
        self.forward: Forward | None = None
        self.recipe: Recipe
        self.stack = 1

    def model(self, index: int) -> nn.Module:
        seed = model_seed(self.seed, index)
        with own_randomness(seed):
            model = self.make_model(seed)
        if not isinstance(model, nn.Module):
            raise TypeError(f"make_model: returned {type(model).__name__} for seed {seed}; accepted is a fresh torch.nn.Module")
        return model


def shadows(
    make_model: MakeModel,
    dataset: Any,
    n: int = 64,
    *,
    epochs: int = 20,
    lr: float = 2e-3,
    batch_size: int = 64,
    train: Train | None = None,
    unlearn: Unlearn | None = None,
    unlearn_pool: Tensor | None = None,
    queries: Callable[[Tensor, int], Tensor] | None = None,
    n_queries: int = 1,
    population: Any = None,
    out: str | PathLike[str] | None = None,
    seed: int = 0,
    stack: str | int | bool = "auto",
    keep_scores: bool = False,
    progress: bool = True,
    unpack: Callable[[Any], tuple[Any, Tensor]] | None = None,
    forward: Forward | None = None,
) -> Shadows:
    """Trains shadow models on halves of a pool of samples and adds their scores to sums that can be merged and saved.

    Each sample is IN exactly half of the models (one model more or less for odd ``n``), each model is trained on half of the pool: models
    come in pairs that share the pool out at random (Carlini et al., S&P'22, section VI). No model is kept, nor its logits.

    Args:
        make_model: seed -> a fresh network on the device it is to be trained on, of the target's make. It is called with the model's seed
            and torch's generators set to it.
        dataset: the pool, N samples: a Dataset, a DataLoader or an (inputs, labels) pair. It should hold the samples to be audited, and be
            drawn as the target's training set. It is read once and held in memory (augment in ``train``).
        n: shadow models, at least 2.
        epochs, lr, batch_size: of the default recipe: Adam with a rate that rises and falls once.
        train: (model, (inputs, labels), seed) -> None, your own recipe in place of the default one.
        unlearn: (model, (forget inputs, labels), (retain inputs, labels), seed) -> the unlearned model, or ``ff.unlearn``'s result. With
            it every trained model then unlearns a random half of its samples in ``unlearn_pool``, for U-LiRA.
        unlearn_pool: int64 positions in the pool that may be unlearned; default all.
        queries: (inputs, k) -> inputs, the k-th of ``n_queries`` augmentations under which every sample is scored.
        n_queries: A, queries a sample.
        population: samples that no model is trained on, for RMIA.
        out: folder for the state, written after every model whole or not at all. A run that was cut off goes on from there and ends with
            the same bytes; a folder of another configuration is refused. Processes that make the same call with the same folder at any
            time, on any machines, share the models out between them: see Returns.
        seed: same seed, same bytes, on the same machine with as many threads.
        stack: how many models to train at once with torch.func: "auto" by measurement and the network's size (1 where it does not pay or
            can't be done), a number, or False for one after another.
        keep_scores: keep each model's float32[N] of losses (attack R needs them).
        progress: show a bar when the output is a terminal.
        unpack: batch -> (inputs, labels), for batches that are not (x, y), (x, _, y) or dicts with "labels".
        forward: (model, inputs) -> logits [batch, classes].

    Returns:
        :class:`Shadows` of all ``n`` models, in every process that makes the call, with the same bytes whoever trained what. Each process
        claims a model (or stack) in ``out`` that no other is at, and waits in the end for those of others. The work of a process that
        stopped, raised or was killed is taken over: at once where it has left or was on the same machine, elsewhere after 60 s without a
        sign of life. That of one which takes ten times as long as others is done again beside it. Under torchrun it is the same; with a
        process group (of which every rank must make the call), a rank that raises or dies ends the others too. What was trained is kept.

    Raises:
        TypeError, ValueError: a bad argument, a folder of another configuration, a network that can't be stacked as asked, a model whose
            logits are NaN.
        RankError (a RuntimeError): another rank of the process group stopped, died, or was given something else; it says which and why.

    >>> import torch, fastforget as ff
    >>> g = torch.Generator().manual_seed(0)
    >>> pool = torch.randn(40, 4, generator=g), torch.arange(40) % 2
    >>> def make_model(seed):
    ...     return torch.nn.Linear(4, 2)
    >>> held = ff.audit.shadows(make_model, pool, n=4, epochs=2)
    >>> held
    Shadows(4 of 4 models, 40 samples, 1 queries)
    >>> held.lira.count.unique().tolist()
    [2]
    >>> target = make_model(1)
    >>> s = ff.ops.membership.membership_scores(target(pool[0]).detach(), pool[1])
    >>> index = held.locate((pool[0][:5], pool[1][:5]))
    >>> held.score("lira", index=index, logit_confidence=s.logit_confidence[:5]).shape
    torch.Size([5])
    """
    with together.ranks(out) as ranks:
        arg.integer("n", n, 2, 2**20)
        arg.integer("seed", seed, 0, 2**63)
        arg.integer("epochs", epochs, 1, 2**31)
        arg.integer("batch_size", batch_size, 2, 2**31)
        arg.integer("n_queries", n_queries, 1, 2**20)
        if not (isinstance(lr, (int, float)) and lr > 0):
            raise ValueError(f"lr: got {lr!r}; accepted is a number > 0")
        if n_queries > 1 and queries is None:
            raise ValueError(f"queries: got None with n_queries={n_queries}; accepted is (inputs, k) -> the k-th augmentation of inputs")
        seed = int(seed)
        with Caller() as caller, caller.aside("shadows", seed):
            pool = Pool(dataset, "dataset", unpack, seed)
            if len(pool) < 2:
                raise ValueError(f"dataset: got {len(pool)} sample; accepted is a pool of at least 2, half of which a model is trained on")
            others = None if population is None else Pool(population, "population", unpack, seed)
            work = _Work(caller.own(make_model), pool, others, n, seed)
            work.train, work.unlearn, work.queries, work.n_queries = caller.own(train), caller.own(unlearn), caller.own(queries), n_queries
            work.forward = caller.own(forward)
            work.recipe = Recipe.for_pool(len(pool), epochs, lr, batch_size, work.forward)
            if augments(pool.source):
                warnings.warn(AUGMENTS, UserWarning, stacklevel=2)
            if unlearn_pool is not None:
                work.candidates = _chosen(unlearn_pool, len(pool))
            first = work.model(0)
            device = device_of(first)
            for part in (pool, *([others] if others is not None else [])):
                part.to(device)
            if train is None:
                _try(first, work)
            work.stack, note = _stack(stack, first, work)
            together.warn_of_idle(-(-n // work.stack), work.stack, ranks)
            settings = _settings(work, first, epochs, lr, batch_size, keep_scores)
            place = together.folder(out, ranks, settings)
            return _run(work, settings, note, place, progress and together.shows(ranks), ranks)


def _try(first: nn.Module, work: _Work) -> None:
    """A step on a copy of the first model, before hours are spent; shorter epochs where batch norm can't train on a single sample."""
    call, half = reading(work.forward), len(work.pool) // 2
    first_step(first, *work.pool.first(2), call, name="make_model", modes=("train",))
    if half // work.recipe.steps < 2 and not trains_on_one(first, work.pool.first(1)[0], call):
        if half < 2:
            raise ValueError(
                f"dataset: half of {len(work.pool)} samples is one, and the network's batch norm can't train on that; accepted is a pool "
                "of at least 4"
            )
        work.recipe = replace(work.recipe, steps=half // 2)
    inputs, _ = work.pool.first(64)
    with eval_mode(first), own_randomness(0), torch.no_grad():
        remedy = probabilities(call(first, inputs))
    if remedy is not None:
        warn_of_probabilities("make_model", remedy, stacklevel=4)


def _chosen(positions: Any, n: int) -> Tensor:
    at = torch.as_tensor(positions)
    if at.dtype != torch.int64 or at.dim() != 1 or len(at) == 0 or not 0 <= int(at.min()) <= int(at.max()) < n:
        raise ValueError(f"unlearn_pool: got {arg.describe(at)}; accepted are int64 positions in the pool, 0 to {n - 1}, at least one")
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, at, True)


def _stack(asked: str | int | bool, first: nn.Module, work: _Work) -> tuple[int, str]:
    """How many models to train at once, and the reason if it is one although more were wanted."""
    if asked is False or (asked == 1 and asked is not True):
        return 1, ""
    auto = asked == "auto"
    if not auto and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise ValueError(f'stack: got {asked!r}; accepted are "auto", False or a number of models >= 1')
    if work.train is not None:
        if auto:
            return 1, ""
        raise ValueError(f"stack: got {asked!r} beside train=; your own recipe trains one model at a time. Leave one of them out")
    size = stack_size(first, work.n) if auto else min(int(asked), work.n)
    if size == 1:
        return 1, ""
    reason = why_not_stacked([first, work.model(1)], work.pool.inputs, work.forward)
    if reason is None:
        return size, ""
    if auto:
        return 1, f"one at a time: {reason}"
    raise ValueError(f'stack: got {asked!r}, but {reason}. Use stack="auto" or False')


def _settings(work: _Work, first: nn.Module, epochs: int, lr: float, batch_size: int, keep_scores: bool) -> dict[str, Any]:
    weights = "; ".join(f"{name} {tuple(p.shape)} {p.dtype}" for name, p in first.named_parameters())
    own = work.train is not None
    return {
        "n": work.n,
        "seed": work.seed,
        "stack": work.stack,
        "samples": len(work.pool),
        "pool": work.pool.sha256,
        "population": None if work.population is None else work.population.sha256,
        "network": f"{type(first).__name__} {hashlib.sha256(weights.encode()).hexdigest()[:16]}",
        "train": _name(work.train) if own else "Adam, one cycle",
        "epochs": None if own else epochs,
        "lr": None if own else float(lr),
        "batch_size": None if own else batch_size,
        "queries": work.n_queries,
        "query": _name(work.queries),
        "forward": _name(work.forward),
        "unlearn": _name(work.unlearn),
        "unlearn_pool": hashlib.sha256(work.candidates.numpy().tobytes()).hexdigest()[:16] if work.unlearn is not None else None,
        "keep_scores": bool(keep_scores),
    }


def _name(call: Any) -> str | None:
    return None if call is None else getattr(call, "__qualname__", type(call).__name__)


def _run(work: _Work, settings: dict[str, Any], note: str, place: Path | None, progress: bool, ranks: Ranks | None) -> Shadows:
    made, digests = Made(settings, (together.machine(work.pool.labels.device),)), work.pool.digests
    groups = [range(i, min(i + work.stack, work.n)) for i in range(0, work.n, work.stack)]

    def blank() -> Shadows:
        return Shadows(settings, digests, len(work.population or ()))

    folder = None if place is None else Folder(place, blank, groups)
    bar: Progress[int] = progress_bar(work.n, "shadow models", progress)
    with bar:

        def show(there: int, now: str) -> None:
            if ranks is not None:
                ranks.check()
            bar.step(there - bar.done, f"{note} {now}".strip() or " ")

        def train(group: Sequence[int]) -> Iterator[Scores]:
            for answers in _train_and_score(work, group, lambda at: show(bar.done, at)):
                yield Scores(answers, digests, made)

        if folder is not None:
            whole = share(folder, train, show)
        else:
            whole = blank()
            for group in groups:
                for scores in train(group):
                    whole.take(scores)
                show(whole.n_models, "")
        show(work.n, "")
    if ranks is not None:
        ranks.agree("what all models sum up to", digest(whole.tensors()), OTHER_BYTES)
    return whole


def _train_and_score(work: _Work, indices: Sequence[int], tick: Callable[[str], None]) -> Iterator[Answers]:
    models = [work.model(i) for i in indices]
    seeds = [model_seed(work.seed, i) for i in indices]
    chosen = [work.member[i].nonzero()[:, 0] for i in indices]
    pool = work.pool
    if work.stack > 1:
        train_stack(models, pool.inputs, pool.labels, chosen, seeds, work.recipe, tick)
    for i, model, seed, own in zip(indices, models, seeds, chosen, strict=True):
        if work.train is not None:
            with own_randomness(seed):
                work.train(model, pool.pair(work.member[i]), seed)
        elif work.stack == 1:
            train_one(model, pool.inputs, pool.labels, own, seed, work.recipe, tick)
        phi, loss = _scores(work, model, pool, i)
        z = None if work.population is None else _scores(work, model, work.population, i)[1]
        yield Answers(i, seed, work.member[i], phi, loss, z, _unlearned(work, model, i, seed))


def _unlearned(work: _Work, model: nn.Module, index: int, seed: int) -> tuple[Tensor, Tensor] | None:
    """U-LiRA's groups int8[N] and the scores after unlearning."""
    if work.unlearn is None:
        return None
    member = work.member[index]
    forget = half_to_forget(member, work.candidates, work.seed, index)
    groups = torch.where(member, -1, 0).to(torch.int8)
    groups[forget] = 1
    with own_randomness(seed):
        changed = work.unlearn(model, work.pool.pair(forget), work.pool.pair(member & ~forget), seed)
    if not isinstance(changed, nn.Module):
        changed = getattr(changed, "model", changed)  # of what ff.unlearn returned
    if not isinstance(changed, nn.Module):
        raise TypeError(f"unlearn: returned {type(changed).__name__}; accepted is the unlearned model")
    return groups, _scores(work, changed, work.pool, index)[0]


def _scores(work: _Work, model: nn.Module, data: Pool, index: int) -> tuple[Tensor, Tensor]:
    """Logit-scaled confidences and losses [n, A], on the CPU."""
    phi, loss = [], []
    where = f"shadow model {index}, {data.name}"
    size = max(data.batch_size, 256)
    with eval_mode(model), torch.no_grad():
        for x, y in data.batches(size):
            asked = [x if work.queries is None else work.queries(x, k) for k in range(work.n_queries)]
            answers = [membership_scores(_logits(model, q, y, work.forward, where), y) for q in asked]
            phi.append(torch.stack([a.logit_confidence for a in answers], dim=1).cpu())
            loss.append(torch.stack([a.loss for a in answers], dim=1).cpu())
    losses = torch.cat(loss)
    bad = int(torch.isnan(losses).sum())
    if bad:
        raise ValueError(
            f"{where}: {bad} of {losses.numel()} losses are NaN; its training diverged. Choose a smaller lr than {work.recipe.lr:g}"
        )
    return torch.cat(phi), losses


def _logits(model: nn.Module, inputs: Any, labels: Tensor, forward: Forward | None, where: str) -> Tensor:
    logits = passes.batch_logits(model, inputs, forward, where)
    passes.check(logits, labels.cpu(), "shadow", where)
    return logits
