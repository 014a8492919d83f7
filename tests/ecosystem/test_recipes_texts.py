"""The recipes of docs/recipes.md on texts (and ViT): Hugging Face's classifiers from their configs, adapters, quantised bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import recipe_page
import torch
from recipe_world import CLASSES, PAD, WORDS, digits, fit, loaders, padded, right, texts
from test_recipes_images import forgotten, state, unlearned
from torch import nn

from fastforget.__main__ import main

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": CLASSES}


def bert(transformers: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, pad_token_id=PAD, **SMALL)
    return transformers.BertForSequenceClassification(config)


def gpt2(transformers: Any) -> nn.Module:
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "num_labels": CLASSES}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), PAD)
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(vocab_size=WORDS, **size, **ids))


def vit(transformers: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=2, num_channels=1, **SMALL))


def pixels(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch as transformers' default collator makes it."""
    return {"pixel_values": torch.stack([s["pixel_values"] for s in samples]), "labels": torch.tensor([s["labels"] for s in samples])}


@pytest.mark.parametrize("make", [bert, gpt2, vit])
def test_transformers(make: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sets: dict[str, Any] = texts()
    held, collate = loaders(sets), padded
    if make is vit:
        images = digits()
        held, collate = loaders(images), pixels
        sets = {name: [{"pixel_values": a, "labels": int(b)} for a, b in zip(*pair, strict=True)] for name, pair in images.items()}
    model = fit(make(transformers), held["train"], 40 if make is vit else 5)
    before = state(model)
    given = {name: sets[name] for name in ("forget", "retain", "test")}
    folder, receipt = tmp_path / "saved", tmp_path / "receipt.json"
    names = recipe_page.run("transformers", model=model, collate=collate, folder=folder, receipt=receipt, **given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    forgotten(names, model, held)

    assert main(["verify", str(receipt), "--model", str(folder)]) == 0
    again = type(model).from_pretrained(folder)
    assert right(again, held["forget"]) <= 0.01
    torch.save({"model": again.state_dict(), "epoch": 1}, tmp_path / "again.pt")
    assert main(["verify", str(receipt), "--model", str(tmp_path / "again.pt")]) == 0
    again.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert main(["verify", str(receipt), "--model", str(tmp_path / "shards")]) == 0
    model.save_pretrained(tmp_path / "original")
    assert main(["verify", str(receipt), "--model", str(tmp_path / "original")]) == 1


def test_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    sets = texts()
    held = loaders(sets)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=4, per_device_train_batch_size=32, learning_rate=2e-3, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    given = {name: held[name] for name in ("forget", "retain", "test")}
    names = recipe_page.run("Trainer", model=bert(transformers), arguments=arguments, train=sets["train"], collate=padded, **given)
    model, callback = names["trainer"].model, names["callback"]
    assert callback.result.forgot and callback.result.model is model
    assert right(model, held["forget"]) <= 0.01 and right(model, held["retain"]) >= 0.8
    rows = {row["model"]: row["accuracy"]["forget"] for row in callback.report.rows}
    assert rows["original"] >= 0.9 and rows["unlearned"] <= 0.01


def adapted(peft: Any, base: nn.Module, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value", "dense"], modules_to_save=["classifier"], **more)
    return peft.get_peft_model(base, config)


def test_peft() -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    held = loaders(texts())
    model = fit(adapted(peft, fit(bert(transformers), held["train"], 2)), held["train"], 4)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) > 30
    names = unlearned("PEFT", model, held)
    forgotten(names, model, held)
    after = dict(names["result"].model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    moved = [name for name, p in model.named_parameters() if not torch.equal(after[name], p)]
    assert moved and all("lora_" in name or "modules_to_save" in name for name in moved)
    assert not any("lora_" in name for name, _ in names["merged"].named_parameters())
    for part in ("forget", "retain", "test"):
        assert right(names["merged"], held[part]) == pytest.approx(right(names["result"].model, held[part]), abs=0.01)
    assert [row["model"] for row in names["report"].rows] == ["original", "unlearned", "merged"]


def quantised(bitsandbytes: Any, model: nn.Module) -> nn.Module:
    """The model with 4-bit weights in place of its encoder's."""
    encoder = model.bert.encoder
    for module in list(encoder.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear):
                four = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, quant_type="nf4", compute_dtype=torch.float32)
                four.weight = bitsandbytes.nn.Params4bit(layer.weight.data.clone(), requires_grad=False, quant_type="nf4")
                four.bias = layer.bias
                four.support_avx512bf16_for_cpu = False  # else it is packed for inference at the first call in eval mode
                setattr(module, name, four.to("cpu"))
    return model


def test_quantised() -> None:
    bitsandbytes, peft = pytest.importorskip("bitsandbytes"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    held = loaders(texts())
    base = quantised(bitsandbytes, fit(bert(transformers), held["train"], 4))
    model = fit(adapted(peft, base), held["train"], 2)
    packed = {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 12  # two layers of six
    names = unlearned("A quantised base with adapters", model, held)
    forgotten(names, model, held)
    after = dict(names["result"].model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in packed.items())
