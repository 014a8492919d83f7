"""Which weights a model has: the same under wrappers, told apart where they are packed, quantised or kept elsewhere."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastforget import _weights as weights
from fastforget._identity import bare_names, digest, fingerprint, of_state
from fastforget.auditing.measure.weights import weight_distance
from fastforget.auditing.proof import hashes


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()


class Wrapper(nn.Module):
    """As a wrapper for per-sample gradients has it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._module = inner


def inner_wrapped(model: nn.Sequential) -> nn.Module:
    return nn.Sequential(nn.DataParallel(model[0]), torch.compile(model[1], backend="eager"), model[2])


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "per sample": Wrapper,
    "all three": lambda model: torch.compile(nn.DataParallel(Wrapper(model)), backend="eager"),
    "inside": inner_wrapped,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_wrapper_changes_neither_hash_nor_distance(wrap) -> None:
    plain, moved = net(), net()
    with torch.no_grad():
        moved[2].bias[0] -= 15
    wrapped = wrap(copy.deepcopy(moved))
    assert fingerprint(wrapped) == fingerprint(moved) != fingerprint(plain)
    assert of_state(wrapped.state_dict()) == of_state(moved.state_dict())
    for one, other in ((wrapped, plain), (wrapped, wrap(copy.deepcopy(plain)))):
        distance = weight_distance(one, other)
        assert distance.reason is None and not distance.identical and distance.total == 15.0
        assert {layer.layer: layer.l2 for layer in distance.layers} == {"0": 0.0, "1": 0.0, "2": 15.0}
    assert weight_distance(wrapped, moved).identical


def test_names_that_would_meet_stay_apart() -> None:
    assert bare_names(["a.module.w", "a.w"]) == {"a.module.w": "a.module.w", "a.w": "a.w"}
    assert bare_names(["module.a.module.w", "module.a.w"]) == {"module.a.module.w": "a.module.w", "module.a.w": "a.w"}
    assert bare_names([]) == {} and bare_names(["module"]) == {"module": "module"}
    x, y = torch.ones(2), torch.zeros(2)
    assert digest({"module.w": x, "w": y}) != digest({"module.w": y, "w": x})


def test_the_hash_of_plain_weights_is_that_of_earlier_receipts() -> None:
    state = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.tensor([1.0, -1.0]), "steps": torch.tensor(3)}
    earlier = "dc960c63400fceb5c6b47a7cc825da6d9c0550aebfe15e677f87a6541996d2e9"
    assert of_state(state) == digest(state) == of_state({**state, "epoch": 3, "name": "x"})
    assert of_state(state) == earlier
    assert hashes.same_state(of_state(state), {f"module.{name}": value for name, value in state.items()})
    # a receipt of a wrapped model from before prefixes were left out
    stated = of_state({f"_orig_mod.{name}": value for name, value in state.items()}, bare=False)
    assert stated != of_state(state) and hashes.same_state(stated, state)
    assert not hashes.same_state(stated, {**state, "steps": torch.tensor(4)})


# ------------------------------------------------------------------ packed, quantised, kept elsewhere


def dynamic(seed: int) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net(seed), {nn.Linear}, dtype=torch.qint8)


def static(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare(model)
    torch.manual_seed(99)
    prepared(torch.randn(4, 1, 4, 4))
    return torch.ao.quantization.convert(prepared)


class ByHand(nn.Module):
    """Weights as whole numbers in a plain attribute, beside a registered bias that never differs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.packed_weight = torch.randint(-127, 127, (3, 6), generator=generator, dtype=torch.int8)
        self.bias = nn.Parameter(torch.zeros(3))


class Unregistered(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = torch.full((3, 6), float(seed))


class Extra(nn.Module):
    """Weights in the extra state."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.bias, self.value = nn.Parameter(torch.zeros(3)), value

    def get_extra_state(self) -> object:
        return self.value

    def set_extra_state(self, state: object) -> None:
        self.value = state


class Quantised(Tensor):
    """A tensor made of whole numbers and a scale."""

    @staticmethod
    def __new__(cls, whole: Tensor, scale: Tensor) -> Quantised:
        return Tensor._make_wrapper_subclass(cls, whole.shape, dtype=torch.float32)

    def __init__(self, whole: Tensor, scale: Tensor) -> None:
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["whole", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].whole, args[0].scale)
        raise NotImplementedError(str(func))


def of_subclass(seed: int) -> nn.Module:
    model = nn.Module()
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-9, 9, (3, 4), generator=generator, dtype=torch.int8)
    model.weight = nn.Parameter(Quantised(whole, torch.ones(())), requires_grad=False)
    return model


def buffered(value: float) -> bytes:
    stream = io.BytesIO()
    torch.save(torch.full((2,), value), stream)
    return stream.getvalue()


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "dynamic": dynamic,
    "static": static,
    "by hand": ByHand,
    "unregistered": Unregistered,
    "extra tensors": lambda seed: Extra({"w": [torch.full((2,), float(seed))]}),
    "extra numbers": lambda seed: Extra([0.5 * seed]),
    "extra bytes": lambda seed: Extra(buffered(seed)),
    "extra stream": lambda seed: Extra(io.BytesIO(buffered(seed))),
    "extra object": lambda seed: Extra(object()),
    "subclass": of_subclass,
    "no weights": lambda seed: nn.Sequential(nn.ReLU()),
}
NO_HASH = {"by hand", "unregistered", "extra object", "no weights"}


@pytest.mark.parametrize("kind", KINDS)
def test_three_different_models_never_hash_alike_nor_count_as_identical(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, again, second, third = (KINDS[kind](seed) for seed in (0, 0, 1, 2))
    hashed = [hashes.of_model(model) for model in (first, again, second, third)]
    if kind in NO_HASH:
        assert all(one["weights_sha256"] is None and one["state_dict_sha256"] is None for one in hashed)
        assert all(one["reason"].startswith("can't be hashed: ") and len(one["reason"]) > 30 for one in hashed)
    else:
        for key in ("weights_sha256", "state_dict_sha256"):
            assert hashed[0][key] == hashed[1][key] and len({one[key] for one in hashed}) == 3
        assert all(one["reason"] is None for one in hashed)
        assert not hashes.same_state(hashed[0]["state_dict_sha256"], second.state_dict())
    apart = weight_distance(first, second)
    assert not apart.identical and apart.reason and math.isnan(apart.total) and apart.layers == []
    same = weight_distance(first, again)
    assert same.identical == (kind not in NO_HASH) and (same.reason is None) == same.identical


def test_a_run_can_tell_a_change_beside_what_has_no_bytes() -> None:
    one, other = Extra(object()), Extra(object())
    assert weights.fingerprint(one) == weights.fingerprint(other)
    with torch.no_grad():
        other.bias[0] = 1
    assert weights.fingerprint(one) != weights.fingerprint(other)
    with pytest.raises(TypeError, match=r"_extra_state is of builtins\.object, which has no bytes to be hashed"):
        fingerprint(one)


def test_lone_numbers_in_a_state_dict_are_no_weights() -> None:
    state = net().state_dict()
    assert of_state(state) == of_state({**state, "epoch": 7, "note": "done", "best": 0.5})
    assert of_state(state) != of_state({**state, "_extra_state": 7})


def test_weights_that_can_not_be_compared_have_a_reason() -> None:
    wide, hole = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)), net()
    with torch.no_grad():
        hole[0].weight[0, 0] = math.nan
    for other, text in (
        (wide, "0.weight has shape (5, 6) in one model and (7, 6) in the other"),
        (net()[:2], "the models differ in structure (first difference: 2.bias)"),
        (hole, "the weights hold NaN"),
        (dynamic(0), "weights are packed in "),
        (nn.Sequential(nn.ReLU()), "no parameters and no buffers"),
    ):
        distance = weight_distance(net(), other)
        assert not distance.identical and text in (distance.reason or ""), distance.reason
    moved = net()
    moved[1].running_mean += 1
    assert (weight_distance(moved, net()).total, weight_distance(moved, net()).identical) == (0.0, False)


class Renaming(nn.Module):
    """Its state_dict names the weights otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_state_dict_post_hook(_rename)


def _rename(module: nn.Module, state: dict, prefix: str, _: object) -> None:
    for name in list(state):
        state[name.replace("inner", "outer")] = state.pop(name)


def test_a_state_dict_with_other_names_holds_no_packed_weights() -> None:
    model = Renaming()
    assert "outer.weight" in model.state_dict() and weight_distance(model, copy.deepcopy(model)).identical
    assert len(weight_distance(model, Renaming()).layers) == 1


def test_complex_weights_are_compared_whole() -> None:
    one, other = nn.Linear(1, 1, bias=False, dtype=torch.complex64), nn.Linear(1, 1, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        one.weight.fill_(3 + 4j)
        other.weight.fill_(0)
    assert weight_distance(one, other).total == pytest.approx(5.0) and fingerprint(one) != fingerprint(other)
