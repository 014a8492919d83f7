"""Other nets of these packages, by the recipes of docs/recipes.md: other classifiers of transformers, other adapters, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_world import CLASSES, PAD, WORDS, digits, fit, loaders, padded, right, texts
from test_recipes_images import TIMM, forgotten, net, unlearned
from test_recipes_texts import SMALL, bert
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import fastforget as ff
from fastforget.__main__ import main

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow]
TEXTS = {"vocab_size": WORDS, "pad_token_id": PAD, "max_position_embeddings": 32}
ENDS = {"bos_token_id": PAD, "eos_token_id": PAD}


def classifier(transformers: Any, name: str) -> nn.Module:
    torch.manual_seed(0)
    narrow = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "num_labels": CLASSES}
    more = {"DistilBert": narrow, "Albert": {**SMALL, "embedding_size": 16}}.get(name, {**SMALL, **ENDS})
    config = getattr(transformers, f"{name}Config")(**more, **TEXTS)
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


def written(names: dict[str, Any], folder: Path) -> str:
    """The path of the receipt of what a recipe did."""
    names["report"].write_receipt(folder / "receipt.json", names["result"])
    return str(folder / "receipt.json")


@pytest.mark.parametrize("name", ["DistilBert", "Albert", "Llama", "GPTNeoX"])
def test_other_classifiers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sets: Any = texts()
    held = loaders(sets)
    model = fit(classifier(transformers, name), held["train"], 6)
    names = unlearned("timm and torchvision", model, held)
    forgotten(names, model, held)
    # the folder is the model
    receipt = written(names, tmp_path)
    names["result"].model.save_pretrained(tmp_path / "saved")
    assert main(["verify", receipt, "--model", str(tmp_path / "saved")]) == 0

    # half of the classes
    two = loaders({part: [s for s in sets["train"] if (s["labels"] in (1, 3)) == (part == "forget")] for part in ("forget", "retain")})
    result = ff.unlearn(model, "sweep", classes=[1, 3], **two, progress=False)
    assert result.forgot and right(result.model, two["forget"]) <= 0.01
    assert right(model, two["retain"]) - right(result.model, two["retain"]) <= 0.1

    # single samples, of a net that knows no text by heart: nothing to tell them by, and it keeps what it knew
    some = loaders({"forget": sets["train"][:40], "retain": sets["train"][40:]})
    result = ff.unlearn(model, "sweep", **some, nonmember=held["test"], progress=False)
    assert right(model, some["retain"]) - right(result.model, some["retain"]) <= 0.02


def test_other_problem_types() -> None:
    """By what the config says, before the first step and in the audit; as it is with forward=."""
    transformers = pytest.importorskip("transformers")
    sets: Any = texts()
    held = loaders(sets)
    parts = {part: held[part] for part in ("forget", "retain", "test")}
    model = bert(transformers)
    for task in ("regression", "multi_label_classification"):
        model.config.problem_type = task
        for wrapped in (model, nn.Sequential(model)):
            with pytest.raises(TypeError, match=f"^model: its config has problem_type='{task}'; accepted"):
                ff.unlearn(wrapped, "sweep", classes=[2], **parts, progress=False)
        with pytest.raises(TypeError, match=f"^model 'original', forget set, samples 0 to 63: its config has problem_type='{task}'"):
            ff.audit({"original": model}, **parts, progress=False)
    told = ff.audit({"original": model}, **parts, forward=lambda net, batch: net(**batch).logits, progress=False)
    assert told.rows[0]["accuracy"]["retain"] == pytest.approx(right(model, held["retain"]), abs=1e-9)

    def several(samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = padded(samples)
        return {**batch, "labels": (F.one_hot(batch["labels"], CLASSES) | F.one_hot(batch["labels"] * 0, CLASSES)).float()}

    model.config.problem_type = None
    with pytest.raises(TypeError, match="rows with several classes, or none; accepted is one class id a sample"):
        ff.unlearn(model, "sweep", classes=[2], retain=DataLoader(sets["retain"], 32, collate_fn=several), progress=False)


def test_a_model_that_fails_in_its_own_words() -> None:
    """transformers' ValueError for a classifier without a padding token comes with the name of the set."""
    transformers = pytest.importorskip("transformers")
    held = loaders(texts())
    model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SMALL, vocab_size=WORDS))
    with pytest.raises(RuntimeError, match=r"^retain: the model's forward failed on a dict with .* ValueError: .* no padding token"):
        ff.unlearn(model, "sweep", classes=[2], forget=held["forget"], retain=held["retain"], progress=False)


def test_a_mixture_of_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    held = loaders(texts())
    torch.manual_seed(0)
    size = {**SMALL, **TEXTS, **ENDS, "num_key_value_heads": 1, "num_local_experts": 4}
    model = fit(transformers.MixtralForSequenceClassification(transformers.MixtralConfig(**size)), held["train"], 6)
    names = unlearned("timm and torchvision", model, held)
    forgotten(names, model, held)
    receipt = written(names, tmp_path)
    names["result"].model.save_pretrained(tmp_path / "saved")
    assert main(["verify", receipt, "--model", str(tmp_path / "saved")]) == 1
    assert "these are other weights, under other names than the model's own (" in capsys.readouterr().out
    again = type(model).from_pretrained(tmp_path / "saved")
    torch.save(again.state_dict(), tmp_path / "again.pt")
    assert main(["verify", receipt, "--model", str(tmp_path / "again.pt")]) == 0
    torch.save(model.state_dict(), tmp_path / "original.pt")
    capsys.readouterr()
    assert main(["verify", receipt, "--model", str(tmp_path / "original.pt")]) == 1
    assert "these are other weights: the receipt says" in capsys.readouterr().out


def adapters(peft: Any) -> dict[str, Any]:
    texts_of = {"task_type": "SEQ_CLS"}
    return {
        "ia3": peft.IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], **texts_of),
        "dora": peft.LoraConfig(r=4, use_dora=True, target_modules=["query", "value", "dense"], **texts_of),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=4, **texts_of),
        "two": peft.LoraConfig(r=4, target_modules=["query", "value", "dense"], **texts_of),
        "convolutions": peft.LoraConfig(r=4, target_modules=r".*conv[12]", modules_to_save=["fc"]),
    }


@pytest.mark.parametrize("name", ["ia3", "dora", "prompt", "two", "convolutions"])
def test_other_adapters(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft = pytest.importorskip("peft")
    of_images = name == "convolutions"
    held = loaders(digits() if of_images else texts())
    base = TIMM["resnet"][1](pytest.importorskip("timm")) if of_images else bert(pytest.importorskip("transformers"))
    base = fit(base, held["train"], 8 if of_images else 3)
    torch.manual_seed(0)
    model = fit(peft.get_peft_model(base, adapters(peft)[name]), held["train"], 3)
    if name == "two":
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
        model.set_adapter("default")
    frozen = {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}
    assert name != "two" or any("second" in key for key in frozen)
    names = unlearned("timm and torchvision", model, held)
    forgotten(names, model, held)
    after = dict(names["result"].model.named_parameters())
    assert all(torch.equal(after[key], value) for key, value in frozen.items())

    # a folder with the adapter alone isn't the model, and a file of its state is
    receipt = written(names, tmp_path)
    names["result"].model.save_pretrained(tmp_path / "adapter")
    assert main(["verify", receipt, "--model", str(tmp_path / "adapter")]) == 1
    assert "under other names than the model's own (a folder may hold an adapter alone" in capsys.readouterr().out
    torch.save(names["result"].model.state_dict(), tmp_path / "whole.pt")
    assert main(["verify", receipt, "--model", str(tmp_path / "whole.pt")]) == 0


@pytest.mark.parametrize("kind", [None, "torch", "numpy", "arrow", "pandas"])
def test_formats_of_datasets(kind: str | None) -> None:
    """Whatever the format, what is read are the columns that it shows: a number beside them is no input."""
    datasets = pytest.importorskip("datasets")
    sets = digits()
    held = loaders(sets)

    def rows(name: str) -> Any:
        x, y = sets[name]
        made = datasets.Dataset.from_dict({"image": x.flatten(1).tolist(), "label": y.tolist(), "number": list(range(len(y)))})
        return made.with_format(kind, columns=["image", "label"])

    model = fit(net(), held["train"], 8)
    names = unlearned("timm and torchvision", model, {name: rows(name) for name in ("forget", "retain", "test")})
    forgotten(names, model, held)
