"""Our methods by the interfaces of others: the challenge's function, SUPREME, torchunlearn."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
from digits_world import World, quiet, same_trace, small_mlp, trace
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastforget as ff
from fastforget import _weights
from fastforget.adapters import supreme, torchunlearn
from fastforget.methods.registry import METHODS

ROOT = Path(__file__).parent.parent
CLASS = 3
OPTIONS = {"steps": 6, "batch_size": 16}


@pytest.fixture(scope="module")
def world():
    return World()


# ------------------------------------------------------------------ the challenge


def loader(pair, **options) -> DataLoader:
    return DataLoader(TensorDataset(*pair), batch_size=32, shuffle=True, **options)


def samples(world: World) -> tuple:
    """Data to keep, 100 single samples to forget, unseen data."""
    x, y = world.train
    return (x[100:], y[100:]), (x[:100], y[:100]), world.test


def test_the_challenges_function_changes_the_net_that_it_is_given(world):
    retain, forget, unseen = samples(world)
    net, options = world.net("mlp").train(), {"seed": 4, "budget": 2000, "precision": "float32", "progress": False}
    direct = quiet(net, "sweep", forget=loader(forget), retain=loader(retain), nonmember=loader(unseen), **options)
    unlearning = ff.adapters.unlearning(**options)
    assert unlearning.result is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.NotForgottenWarning)
        assert unlearning(net, loader(retain), loader(forget), loader(unseen)) is net
    assert not any(module.training for module in net.modules())
    assert _weights.fingerprint(net) == _weights.fingerprint(direct.model)
    assert unlearning.result.receipt == direct.receipt and direct.receipt["cost"]["phases"]["sweep"]["trained"] > 0


def test_the_challenges_function_fails_without_a_trace(world):
    retain, forget, unseen = samples(world)
    net = world.net("mlp")
    before = trace(net)
    with pytest.raises(ValueError, match="classes"):
        ff.adapters.unlearning("sweep", classes=[99], progress=False)(net, loader(retain), loader(forget), loader(unseen))
    assert same_trace(before, trace(net))
    with pytest.raises(TypeError, match="options: got inplace, retain"):
        ff.adapters.unlearning(retain=retain, inplace=False)


# ------------------------------------------------------------------ SUPREME, by its public sources


class FabricLoader:
    """As Fabric wraps a loader: no DataLoader itself."""

    def __init__(self, inner: DataLoader) -> None:
        self.__dict__.update(inner.__dict__)
        self._dataloader = inner


class FabricModule(nn.Module):
    """As Fabric wraps a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module

    @property
    def module(self) -> nn.Module:
        return self._forward_module


def triples(pair) -> FabricLoader:
    """(image, fine label, label), as SUPREME's data sets give them."""
    x, y = pair
    return FabricLoader(DataLoader(list(zip(x, y + 50, y, strict=True)), batch_size=32, shuffle=True))


@pytest.fixture
def pipeline(monkeypatch):
    """What SUPREME's registry and dispatch do with a name, in a few lines of our own."""
    targets: dict[str, str] = {}
    fake = types.ModuleType("supreme")
    fake.register_unlearning_method = targets.__setitem__
    monkeypatch.setitem(sys.modules, "supreme", fake)

    def run(name: str, **kwargs):
        module, attribute = targets[name].split(":")
        return getattr(importlib.import_module(module), attribute)(**kwargs)

    return run


def passed(world: World, net: nn.Module, forget, retain, **more) -> dict:
    wrapped = {"retain_train_dataloader": retain, "forget_train_dataloader": forget, "test_dataloader": world.test}
    fabric = types.SimpleNamespace(world_size=1, global_rank=0)
    return {"fabric": fabric, "model": FabricModule(net), "num_gpus": 0, **{k: triples(v) for k, v in wrapped.items()}, **more}


@pytest.mark.parametrize(("strategy", "classes"), [("fullclass", [CLASS]), ("random_", None), ("subclass", None)])
def test_supreme_runs_ours_by_name(pipeline, world, strategy, classes):
    assert supreme.register() == [f"fastforget_{name}" for name in METHODS]
    retain, forget, unseen = samples(world)
    if classes:
        forget, retain = world.part(world.train, classes, True), world.part(world.train, classes, False)
    net = world.net("mlp")
    kwargs = passed(world, net, forget, retain, type_of_unlearning_strategy=strategy)
    if strategy != "random_":
        kwargs["forget_label_id"] = CLASS
    direct = quiet(net, "lightweight", classes=classes, forget=forget, retain=retain, nonmember=unseen, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.NotForgottenWarning)
        assert pipeline("fastforget_lightweight", **kwargs) is kwargs["model"]
    # read by sample or as one tensor, the data is the same, and so is the run
    assert _weights.fingerprint(net) == _weights.fingerprint(direct.model)


def test_supreme_is_told_what_cannot_be(pipeline, world):
    supreme.register(prefix="ff_")
    retain, forget, _ = samples(world)
    net = world.net("mlp")
    kwargs = passed(world, net, forget, retain, type_of_unlearning_strategy="random_")
    before = trace(net)
    with pytest.raises(RuntimeError, match="fabric: got 4 processes"):
        pipeline("ff_sweep", **{**kwargs, "fabric": types.SimpleNamespace(world_size=4)})
    with pytest.raises(ValueError, match="type_of_unlearning_strategy: got 'half'; accepted are fullclass, subclass, random_"):
        pipeline("ff_sweep", **{**kwargs, "type_of_unlearning_strategy": "half"})
    with pytest.raises(ValueError, match="unseen: got 'val'; accepted are None or one of the loaders, .*test_dataloader"):
        supreme.method("sweep", unseen="val")(**kwargs)
    with pytest.raises(ValueError, match="nonmember: not given"):
        supreme.method("sweep", unseen=None, progress=False)(**kwargs)
    with pytest.raises(AttributeError, match="fastforget_nothing"):
        supreme.fastforget_nothing  # noqa: B018
    assert same_trace(before, trace(net))


# ------------------------------------------------------------------ torchunlearn


class Merged:
    """As torchunlearn merges loaders."""

    def __init__(self, loaders: dict) -> None:
        self.loaders = loaders


def test_torchunlearns_users_fit_ours(world):
    retain, forget, unseen = samples(world)
    net, options = world.net("mlp"), {"seed": 4, "budget": 2000, "precision": "float32", "progress": False}
    direct = quiet(net, "sweep", forget=forget, retain=retain, nonmember=unseen, **options)
    unlearner = torchunlearn.Unlearner(net, method="sweep", nonmember=unseen, **options).setup()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.NotForgottenWarning)
        unlearner.fit(Merged({"Retain": loader(retain), "Forget": loader(forget)}))
    assert _weights.fingerprint(net) == _weights.fingerprint(direct.model) and unlearner.result.receipt == direct.receipt
    with pytest.raises(TypeError, match="setup: got n_epochs, optimizer; a method of fastforget brings its own"):
        unlearner.setup(optimizer="SGD(lr=0.1)", n_epochs=3)
    with pytest.raises(TypeError, match=r"train_loaders: got \['Retain'\]; accepted is MergedLoaders or a dict"):
        unlearner.fit({"Retain": loader(retain)})


def test_torchunlearns_registry_builds_ours(world, monkeypatch):
    """Its later sources: a registered class has ``fit``, and is made of the model and its keyword arguments."""
    built: dict = {}

    def register_unlearner(name, kind, hparams=(), summary="", reference="", cls=None, modality="vision"):
        assert kind == "nontrainer" and callable(cls.fit) and cls.__doc__
        built[name] = cls

    for name in ("torchunlearn", "torchunlearn.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchunlearn.api"].register_unlearner = register_unlearner
    assert torchunlearn.register() == list(built) == [f"fastforget_{name}" for name in METHODS]
    made = {name: kind(small_mlp(), seed=1) for name, kind in built.items()}
    assert [unlearner.method for unlearner in made.values()] == list(METHODS) and made["fastforget_none"].options == {"seed": 1}


RELEASED = """
import sys, torch
try:
    import torchvision
except RuntimeError:  # built for a GPU, beside a torch without: torchunlearn needs its data sets alone, none of its ops
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    ops = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        if not hasattr(torch.ops.torchvision, op):
            ops.define(f"{op}() -> ()")
from torchunlearn import RobModel
from torchunlearn.utils.data import MergedLoaders
sys.path.insert(0, sys.argv[1])
from digits_world import World
from fastforget.adapters.torchunlearn import Unlearner
from torch.utils.data import DataLoader, TensorDataset
world = World()
forget, retain = [DataLoader(TensorDataset(*world.part(world.train, [3], inside)), batch_size=64, shuffle=True) for inside in (True, False)]
model = RobModel(world.net("cnn"), n_classes=10, normalization_used={"mean": [0.0], "std": [1.0]})
known = model.eval_accuracy(forget)
unlearner = Unlearner(model, method="sweep", classes=[3], progress=False).fit(MergedLoaders({"Retain": retain, "Forget": forget}))
assert unlearner.result.forgot, unlearner.result.why
print(known, model.eval_accuracy(forget), model.eval_accuracy(retain))
"""


@pytest.mark.slow
def test_the_released_torchunlearn_serves_ours():
    """With what requirements/ecosystem.txt pins."""
    if importlib.util.find_spec("torchunlearn") is None:
        pytest.skip("needs torchunlearn (pip install --no-deps -r requirements/ecosystem.txt)")
    command = [sys.executable, "-c", RELEASED, str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    known, forgotten, kept = map(float, done.stdout.split()[-3:])
    assert known > 95 and forgotten <= 1 and kept > 95  # percent
