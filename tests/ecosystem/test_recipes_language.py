"""The recipe of docs/recipes.md on causal language models: from their configs, and with adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import recipe_page
import torch
from test_recipes_images import state
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fastforget as ff
from fastforget._causal.head import find_head
from fastforget._outputs import call, reading
from fastforget.auditing.proof.check import check

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow]
WORDS, LONGEST = 30, 12
Sample = dict[str, list[int]]


def gpt2(transformers: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, **size, **ids, **dropout))


def llama(transformers: Any) -> nn.Module:
    torch.manual_seed(0)
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=WORDS, **size, **ids))


def texts() -> dict[str, list[Sample]]:
    """Words drawn at random, so that a model knows the ones it was trained on by heart; the first two aren't scored."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for i in range(72):
        ids = torch.randint(1, WORDS, (LONGEST - i % 4,), generator=generator).tolist()
        drawn.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return {"forget": drawn[:16], "retain": drawn[16:48], "unseen": drawn[48:]}


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """As DataCollatorForSeq2Seq pads."""
    longest = max(len(s["input_ids"]) for s in samples)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([s[name] + [value] * (longest - len(s[name])) for s in samples])

    ids = padded("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": padded("labels", -100)}


def fit(model: nn.Module, samples: list[Sample], steps: int, lr: float) -> nn.Module:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**collate(samples)).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def losses(model: nn.Module, samples: list[Sample]) -> Tensor:
    """Each sequence's, by transformers' own loss."""
    return torch.stack([model(**collate([sample])).loss for sample in samples])


def auc(model: nn.Module, sets: dict[str, list[Sample]]) -> float:
    return float((losses(model, sets["forget"])[:, None] < losses(model, sets["unseen"])).double().mean())


@pytest.mark.parametrize("make", [gpt2, llama])
def test_causal_models(make: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sets = texts()
    model = fit(make(transformers), sets["forget"] + sets["retain"], 120, 5e-3)
    before = state(model)
    batch = collate(sets["forget"])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        assert find_head(model, reading(call), inputs, model(**inputs).logits) == "lm_head"

    names = recipe_page.run("Causal language models", model=model, collate=collate, rate=1e-3, folder=tmp_path, **sets)
    told = names["result"].receipt["verdict"]
    assert told["attack_auc_before"] == pytest.approx(auc(model, sets), abs=0.01) and told["known_before"]
    assert told["attack_auc"] == pytest.approx(auc(names["result"].model, sets), abs=0.01)
    assert told["attack_auc"] < told["attack_auc_before"]
    assert losses(names["result"].model, sets["forget"]).mean() > 2 * losses(model, sets["forget"]).mean()
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(losses(again, sets["forget"]), losses(names["result"].model, sets["forget"]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    loaders = {name: torch.utils.data.DataLoader(sets[name], batch_size=8, collate_fn=collate) for name in ("forget", "retain")}
    for method in ("gradient_difference", "simnpo", "rmu"):
        result = ff.unlearn(model, method, **loaders, lr=1e-3, epochs=1, batch_size=8, progress=False)
        assert not all(torch.equal(value, before[name]) for name, value in result.model.state_dict().items()), method

    # one step on everything is a step by transformers' own loss, which it computes in float32
    plain = copy.deepcopy(model).double().train()
    one = {"lr": 1.0, "epochs": 1, "batch_size": 99, "mean": "tokens", "retain_weight": 0.5, "optimizer": "sgd", "momentum": 0.0}
    result = ff.unlearn(copy.deepcopy(plain), "gradient_difference", **loaders, **one, progress=False)
    optimizer = torch.optim.SGD(plain.parameters(), 1.0, weight_decay=0.01)
    (0.5 * plain(**collate(sets["retain"])).loss - plain(**batch).loss).backward()
    optimizer.step()
    for (name, ours), theirs in zip(result.model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
        assert not torch.equal(ours, model.state_dict()[name].double()), name


def test_causal_adapters(tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    sets = texts()
    base = fit(llama(transformers), sets["forget"] + sets["retain"], 120, 5e-3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).eval()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    names = recipe_page.run("Causal language models", model=model, collate=collate, rate=1e-2, folder=tmp_path, **sets)
    result = names["result"]
    for name, p in result.model.named_parameters():
        assert torch.equal(p, frozen[name]) if name in frozen else p.requires_grad
    assert losses(result.model, sets["forget"]).mean() > 2 * losses(model, sets["forget"]).mean()
    assert result.receipt["verdict"]["attack_auc"] == pytest.approx(auc(result.model, sets), abs=0.01)

    rmu = ff.unlearn(
        model, "rmu", forget=names["forget"], retain=names["retain"], lr=1e-3, progress=False, layer="base_model.model.model.layers.1"
    )
    assert all("lora" in name for name in rmu.receipt["measured"]["trained"])
    for name, p in rmu.model.named_parameters():
        assert torch.equal(p, frozen[name]) if name in frozen else p.requires_grad


def test_an_audit_of_gpt2(tmp_path: Path) -> None:
    """Tied weights and layers that no reset makes anew; loaders that pad; a net that another seed trained without the texts passes."""
    transformers = pytest.importorskip("transformers")
    sets = texts()
    original = fit(gpt2(transformers), sets["forget"] + sets["retain"], 120, 5e-3)
    retrained = [fit(gpt2(transformers, seed), sets["retain"], 120, 5e-3) for seed in (1, 2, 3)]
    models = {
        "original": original, "copied": copy.deepcopy(original), "again": retrained[2], "retrained 2": retrained[1],
        "retrained": retrained[0],
    }  # fmt: skip
    loaders = {name: DataLoader(part, batch_size=8, collate_fn=collate) for name, part in sets.items()}  # type: ignore[arg-type]
    report = ff.audit(
        models, forget=loaders["forget"], retain=loaders["retain"], test=loaders["unseen"], sequences=True, controls=True, progress=False
    )
    assert {row.model: row.status for row in report.figures} == {
        "original": "FAIL", "copied": "FAIL", "again": "PASS", "retrained": "PASS", "retrained 2": "PASS",
    }  # fmt: skip
    assert all(outcome.behaved for outcome in report.control_outcomes.values())
    expected = float(losses(original, sets["forget"]).mean())
    assert report.figures_of("original").mean_loss["forget"].value == pytest.approx(expected, abs=1e-5)
    receipt = report.of("again").write_receipt(tmp_path / "receipt.json")
    states = {"original": original.state_dict(), "again": retrained[2].state_dict()}
    assert [one for one in check(receipt, weights=states) if one.why] == []
