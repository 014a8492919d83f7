"""The recipes of docs/recipes.md on images: each package's own net and loaders, trained here; the page's example unlearns and audits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import recipe_page
import torch
from recipe_world import CLASSES, FORGOTTEN, digits, fit, loaders, right
from torch import nn

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def forgotten(names: dict[str, Any], before: nn.Module, held: dict, *, known: float = 0.9, lost: float = 0.1) -> None:
    """Counted here: the class was known and is gone, the others are still known; and the audit's figures are these counts."""
    after = names["result"].model
    assert right(before, held["forget"]) >= known
    assert right(after, held["forget"]) <= 0.01 and right(before, held["retain"]) - right(after, held["retain"]) <= lost
    # the verdict is that of the counts: the class may still be answered on a few test samples
    assert names["result"].forgot == (right(after, held["test"], FORGOTTEN) <= 0.01), names["result"].why
    rows = {row["model"]: row["accuracy"] for row in names["report"].rows}
    for part in ("forget", "retain"):
        assert rows["original"][part] == pytest.approx(right(before, held[part]), abs=1e-9)
        assert rows["unlearned"][part] == pytest.approx(right(after, held[part]), abs=1e-9)


def unlearned(heading: str, model: nn.Module, held: dict, **more: Any) -> dict[str, Any]:
    """Runs the recipe and checks that the model as given keeps its bits."""
    before = state(model)
    names = recipe_page.run(heading, model=model, **{name: held[name] for name in ("forget", "retain", "test")}, **more)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return names


TIMM = {
    "resnet": (8, lambda timm: timm.models.ResNet(
        timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 16, 24, 32), in_chans=1, num_classes=CLASSES)),
    "convnext": (12, lambda timm: timm.create_model(
        "convnext_atto", in_chans=1, num_classes=CLASSES, patch_size=1, ls_init_value=0.1, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32),
        drop_path_rate=0.1)),
    "vit": (16, lambda timm: timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=CLASSES, embed_dim=48, depth=2, num_heads=3,
        drop_path_rate=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TIMM))
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    epochs, make = TIMM[name]
    held = loaders(digits())
    torch.manual_seed(0)
    model = fit(make(timm), held["train"], epochs)
    if name != "resnet":
        assert any(type(module).__name__ == "DropPath" and module.drop_prob > 0 for module in model.modules())
    forgotten(unlearned("timm and torchvision", model, held), model, held)


def test_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    held = loaders(digits(16, 3))
    torch.manual_seed(0)
    setting = [[1, 16, 1, 1], [4, 24, 2, 2], [4, 32, 1, 1]]
    model = fit(models.MobileNetV2(num_classes=CLASSES, width_mult=0.2, inverted_residual_setting=setting), held["train"], 8)
    forgotten(unlearned("timm and torchvision", model, held), model, held)


def test_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    sets = digits()
    held = loaders(sets)

    def rows(name: str) -> Any:
        x, y = sets[name]
        return datasets.Dataset.from_dict({"image": x.flatten(1).tolist(), "label": y.tolist(), "name": [f"digit {i}" for i in y.tolist()]})

    model = fit(net(), held["train"], 8)
    before = state(model)
    names = recipe_page.run("datasets", model=model, train=rows("train"), test=rows("test"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(names["forget"]) == len(sets["forget"][1])
    forgotten(names, model, held)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    held = loaders(digits())
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    try:
        model = accelerator.prepare(net())
        fit(model, held["train"], 8)
        names = unlearned("accelerate", model, held, accelerator=accelerator)
        assert type(names["retain"]) is not type(held["retain"])  # the accelerator's own loaders were read
        forgotten(names, model, held)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)


def test_lightning() -> None:
    lightning = pytest.importorskip("lightning")
    held = loaders(digits())

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-3)

    model = Classifier()
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=8, accelerator="cpu", **off)
    names = recipe_page.run("Lightning", model=model, trainer=trainer, **held)
    assert model.trainer is trainer
    forgotten(names, model, held)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: str) -> None:
    fabric = pytest.importorskip("lightning.fabric")
    held = loaders(digits())
    model = fit(net(), held["train"], 8)
    before = state(model)
    chosen = fabric.Fabric(accelerator="cpu", precision=precision)
    names = recipe_page.run("Fabric", model=model, fabric=chosen, **{name: held[name] for name in ("forget", "retain", "test")})
    assert names["model"].module is model and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    forgotten(names, model, held)
    if precision != "32-true":  # the wrapper itself says what to pass
        import fastforget as ff

        with pytest.raises(RuntimeError, match=r"pass model\.module"):
            ff.unlearn(names["model"], "sweep", classes=[FORGOTTEN], forget=held["forget"], retain=held["retain"], progress=False)


def test_skorch() -> None:
    skorch = pytest.importorskip("skorch")
    sets = digits()
    held = loaders(sets)
    x, y = (part.numpy() for part in sets["train"])
    made = skorch.NeuralNetClassifier(net, criterion=nn.CrossEntropyLoss, max_epochs=15, lr=0.1, verbose=0, train_split=None)
    names = recipe_page.run("skorch", net=made, x=x, y=y, **{name: held[name] for name in ("forget", "retain", "test")})
    forgotten(names, names["original"], held)
    # the net that skorch holds is the one that forgot
    predicted = made.predict(sets["forget"][0].numpy())
    assert (predicted == FORGOTTEN).mean() <= 0.01
    import fastforget as ff

    with pytest.raises(TypeError, match=r"got NeuralNetClassifier; .* model\.module_"):
        ff.unlearn(made, "sweep", classes=[FORGOTTEN], retain=held["retain"])


def test_torchmetrics() -> None:
    pytest.importorskip("torchmetrics")
    held = loaders(digits())
    model = fit(net(), held["train"], 8)
    names = unlearned("torchmetrics", model, held)
    rows = names["accuracy"].tolist()
    after = copy.deepcopy(names["result"].model)
    x, y = digits()["test"]
    answers = after(x).argmax(1)
    assert rows == pytest.approx([float((answers[y == c] == c).double().mean()) for c in range(CLASSES)], abs=1e-6)
    assert rows[FORGOTTEN] <= 0.01 < 0.9 < min(rows[:FORGOTTEN] + rows[FORGOTTEN + 1 :])


def test_compile() -> None:
    held = loaders(digits())
    model = fit(net(), held["train"], 8)
    torch._dynamo.reset()
    forgotten(unlearned("torch.compile", model, held), model, held)
