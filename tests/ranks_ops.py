"""Every op and optimiser that takes parameters, called on tensors as ``place`` arranges them: whole in one process, or sharded.

Each case returns what it made, tensors of any kind; :func:`work` saves them whole, as every rank has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget.ops import mask, noise, update

SHAPES = [(5, 3), (13,), (6, 4, 3, 3), (1, 7), (3, 10), ()]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
Place = Callable[[Sequence[Tensor]], list[Tensor]]
PLACEMENTS = ["Shard(0)", "Shard(1)", "Shard(-1)", "Replicate", "mixed", "grid"]


def draw(seed: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in SHAPES]


def _normal(place: Place, dtype: torch.dtype) -> list[Any]:
    one = [noise.normal_(x, 0.5, 1.0, seed=5, step=2, start=3) for x in place(draw(0, dtype))]
    return one + noise.normal_(place(draw(0, dtype)), [0.1 * i for i in range(len(SHAPES))], seed=7, start=list(range(len(SHAPES))))


def _add_normal(place: Place, dtype: torch.dtype) -> list[Any]:
    by_element = noise.add_normal_(place(draw(0, dtype)), place([x.abs() for x in draw(1, dtype)]), seed=9, stream=4)
    return noise.add_normal_(place(draw(0, dtype)), 0.1, seed=5, stream=2) + by_element


def _perturb(place: Place, dtype: torch.dtype) -> list[Any]:
    return noise.perturb_step_(place(draw(0, dtype)), place(draw(1, dtype)), lr=0.1, std=0.2, seed=3, step=1)


def _dampen(place: Place, dtype: torch.dtype) -> list[Any]:
    x, f, r = (place([t.abs() if i else t for t in draw(i, dtype)]) for i in range(3))
    return [*x, mask.dampen_(x, f, r, alpha=1.0, lam=1.0)]


def _accumulate(place: Place, dtype: torch.dtype) -> list[Any]:
    into = place(draw(0, torch.float32 if dtype == torch.bfloat16 else dtype))
    return mask.accumulate_importance_(into, place(draw(1, dtype)), scale=0.3)


def _soft(place: Place, dtype: torch.dtype) -> list[Any]:
    x = place(draw(0, dtype))
    return [*x, mask.soft_threshold_(x, 0.3).nnz, mask.soft_threshold_(x, [0.1 * i for i in range(len(x))]).nnz]


def _stats(place: Place, dtype: torch.dtype) -> list[Any]:
    x = [t for t in place(draw(0, dtype)) if t.dim()]
    made = [*mask.neuron_stats(x), *mask.neuron_stats([t for t in x if t.dim() > 1], dim=1), *mask.neuron_stats(x, dim=-1)]
    return [one for each in made for one in each]


def _saliency(place: Place, dtype: torch.dtype) -> list[Any]:
    made: list[Any] = []
    tied = [torch.where(t.abs() < 0.8, torch.zeros_like(t), t.sign()) for t in draw(1, dtype)]
    odd = draw(2, dtype)
    odd[0][1, 1], odd[2][3, 2, 1, 0], odd[4][0, 3] = torch.nan, -torch.nan, torch.inf
    for values in (draw(0, dtype), tied, odd):
        for keep in (0.0, 0.01, 0.3, 0.5, 0.77, 0.9, 1.0):
            masks, threshold = mask.saliency_mask(place(values), keep)
            made += [*masks, threshold]
    return made


def _ratio(place: Place, dtype: torch.dtype) -> list[Any]:
    above, below = (place([t.abs() for t in draw(i, dtype)]) for i in range(2))
    return mask.ratio_mask(above, below, 0.7, eps=0.01)


def _products(place: Place, dtype: torch.dtype) -> list[Any]:
    """Of whole numbers, whose sums are exact in any order."""
    a, b = (place([(2 * t).round() for t in draw(i, dtype)]) for i in range(2))
    return [*update.gradient_products(a, b)]


def _masks(form: str, whole: Sequence[Tensor], place: Place) -> list[Tensor | None]:
    elements = [t > 0 for t in draw(8, torch.float32)]
    rows = [t[(slice(None), *[0] * (t.dim() - 1))] if t.dim() else t for t in elements]
    made: dict[str, Any] = {
        "none": [None] * len(elements),
        "elements": place(elements),
        "plain": elements,
        "rows": place(rows),
        "plain_rows": rows,
        "bits": [mask.pack_bits(t) for t in elements],
        "factors": [r.float() * 0.5 if r.dim() else None for r in rows],
    }
    return made[form]


def _sgd(place: Place, dtype: torch.dtype, form: str) -> list[Any]:
    p, g, m = (place(draw(i, dtype)) for i in range(3))
    mask.masked_sgd_(p, g, _masks(form, p, place), lr=0.1, momentum=0.9, momentum_buffers=m, weight_decay=0.1)
    return p + m


def _adam(place: Place, dtype: torch.dtype, form: str) -> list[Any]:
    p, g, m = (place(draw(i, dtype)) for i in range(3))
    v = place([t.abs() for t in draw(3, dtype)])
    mask.masked_adam_(p, g, _masks(form, p, place), m, v, step=3, lr=0.1, weight_decay=0.1)
    return p + m + v


def _optimiser(place: Place, cls: Any, form: str, **options: Any) -> list[Any]:
    params = [nn.Parameter(t) for t in place(draw(0, torch.float32))]
    optimizer = cls(params, lr=0.1, weight_decay=0.01, mask=dict(zip(params, _masks(form, params, place), strict=True)), **options)
    for step in range(3):
        for p, g in zip(params, place(draw(10 + step, torch.float32)), strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach() for p in params]


CASES: dict[str, Callable[[Place], list[Any]]] = {
    f"{op.__name__[1:]} {name}": lambda place, op=op, dtype=dtype: op(place, dtype)  # type: ignore[misc]
    for op in (_normal, _add_normal, _perturb, _dampen, _accumulate, _soft, _stats, _saliency, _ratio, _products)
    for name, dtype in DTYPES.items()
}
FORMS = ["none", "elements", "plain", "rows", "plain_rows", "bits"]
for _form in [*FORMS, "factors"]:
    CASES[f"sgd {_form}"] = lambda place, form=_form: _sgd(place, torch.float32, form)
    CASES[f"MaskedSGD {_form}"] = lambda place, form=_form: _optimiser(place, ff.optim.MaskedSGD, form, momentum=0.9)
for _form in FORMS:
    CASES[f"adam {_form}"] = lambda place, form=_form: _adam(place, torch.float32, form)
    CASES[f"MaskedAdam {_form}"] = lambda place, form=_form: _optimiser(place, ff.optim.MaskedAdam, form)
    CASES[f"MaskedAdamW {_form}"] = lambda place, form=_form: _optimiser(place, ff.optim.MaskedAdamW, form)


def whole(made: Sequence[Any]) -> list[Tensor]:
    return [(t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for t in made]


def alone(case: str) -> list[Tensor]:
    return whole(CASES[case](lambda ts: [t.clone() for t in ts]))


def placer(placement: str, world: int) -> Place:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (world,))

    if placement == "grid":  # two dimensions of ranks
        two = init_device_mesh("cpu", (2, world // 2) if world % 2 == 0 else (1, world))
        pairs = [(Shard(0), Shard(1)), (Replicate(), Shard(0)), (Shard(1), Replicate()), (Shard(0), Shard(0)), (Replicate(), Replicate())]

        def on_grid(i: int, t: Tensor) -> Tensor:
            of = [p for p in pairs if all(q.is_replicate() or q.dim < t.dim() for q in p)]
            return distribute_tensor(t.clone(), two, list(of[i % len(of)]))

        return lambda ts: [on_grid(i, t) for i, t in enumerate(ts)]

    def one(i: int, t: Tensor) -> Tensor:
        kind = ["Shard(0)", "plain", "Shard(-1)", "Replicate", "Shard(1)"][i % 5] if placement == "mixed" else placement
        if kind == "plain":
            return t.clone()
        dim = int(kind[6:-1]) if kind.startswith("Shard") else 0
        if kind == "Replicate" or t.dim() == 0:
            return distribute_tensor(t.clone(), mesh, [Replicate()])
        return distribute_tensor(t.clone(), mesh, [Shard(min(dim, t.dim() - 1) % t.dim())])

    return lambda ts: [one(i, t) for i, t in enumerate(ts)]


def work(rank: int, world: int, folder: Path) -> None:
    """All cases in all placements; what went wrong is saved in place of a case's results."""
    made: dict[tuple[str, str], Any] = {}
    for placement in PLACEMENTS:
        place = placer(placement, world)
        for name, case in CASES.items():
            try:
                made[name, placement] = whole(case(place))
            except Exception as error:  # every rank meets the same one, or the test's end by timeout says so
                made[name, placement] = f"{type(error).__name__}: {error}"
    torch.save(made, folder / f"{rank}.pt")


def compiled(rank: int, world: int, folder: Path) -> None:
    """Ops on sharded tensors in one graph each."""
    place = placer("Shard(0)", world)

    def step(p: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor]) -> None:
        mask.masked_adam_(p, g, None, m, v, step=1, lr=0.1)
        noise.add_normal_(p, 0.1, seed=5, stream=2)

    made = []
    for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        arguments = [place([t.abs() for t in draw(i, torch.float32)]) for i in range(4)]
        call(*arguments)
        made.append(whole([t for ts in arguments for t in ts]))
    torch.save(made, folder / f"{rank}.pt")
