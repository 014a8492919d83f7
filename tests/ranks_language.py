"""What the ranks of test_distributed_language.py run: causal language models that they hold together, unlearned and audited."""

from __future__ import annotations

import copy
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision_here
from ranks_calls import _ends, ddp, whole
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

import fastforget as ff
from fastforget import _ranks

WORDS, LENGTH, PAD = 13, 8, 0
METHODS: dict[str, dict[str, Any]] = {
    "npo": {"hold": "anchor"},
    "simnpo": {"hold": "labels"},
    "rmu": {"hold": "states"},
    "gradient_difference": {"hold": "labels"},
}


class Block(nn.Module):
    """One head of causal attention, and a small network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).chunk(3, dim=2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.narrow(F.gelu(self.wide(x)))


class Transformer(nn.Module):
    """Four blocks between an embedding and a head; ``tied``: they share their weight, as GPT-2's do."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(WORDS, 12), nn.Embedding(LENGTH, 12)
        self.layers = nn.ModuleList(Block(12) for _ in range(4))
        self.head = nn.Linear(12, WORDS, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids) + self.places.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def texts(name: str) -> list[dict[str, Tensor]]:
    """Words of different lengths; the first two aren't scored."""
    seed, count = {"forget": (0, 12), "retain": (1, 18), "nonmember": (2, 14), "test": (2, 14)}[name]
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(1, WORDS, (int(torch.randint(5, LENGTH + 1, (1,), generator=g)),), generator=g)
        made.append({"input_ids": ids, "labels": torch.cat((torch.full((2,), -100), ids[2:]))})
    return made


def padded(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    longest = max(len(s["input_ids"]) for s in samples)

    def filled(name: str, value: int) -> Tensor:
        return torch.stack([F.pad(s[name], (0, longest - len(s[name])), value=value) for s in samples])

    ids = filled("input_ids", PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": filled("labels", -100)}


def sets(*names: str, parts: bool = False) -> dict[str, Any]:
    """Loaders that pad; ``parts``: each shows this rank a share."""
    made = {}
    for name in names:
        held: Any = texts(name)
        sampler = DistributedSampler(held, shuffle=True, seed=3) if parts else None
        made[name] = DataLoader(held, batch_size=5, collate_fn=padded, sampler=sampler)
    return made


def net(tied: bool = False) -> nn.Module:
    """Fitted to what is to be forgotten and kept."""
    torch.manual_seed(0)
    made = Transformer(tied).double()
    batch = padded([*texts("forget"), *texts("retain")])
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(30):
        optimizer.zero_grad()
        logits = made(batch["input_ids"])[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100).backward()
        optimizer.step()
    optimizer.zero_grad()
    return made.eval()


def fsdp(model: nn.Module) -> nn.Module:
    """Blocks on their own and the rest together, as is usual; weights are left whole, as after an evaluation."""
    from torch.distributed.fsdp import fully_shard

    made: Any = copy.deepcopy(model)
    for layer in next(m for m in made.modules() if isinstance(m, nn.ModuleList)):
        fully_shard(layer)
    fully_shard(made)
    with torch.no_grad():
        made(input_ids=torch.ones(2, LENGTH, dtype=torch.int64))
    return made


HELD = {"ddp": ddp, "fsdp": fsdp}


def call(model: nn.Module, method: str, given: dict[str, Any], **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.methods.NotForgottenWarning)
        options = {"epochs": 2, "batch_size": 6, "lr": 1e-2, **METHODS[method], **options}
        return ff.unlearn(model, method, progress=False, **given, **options)


def state_of(result: Any, model: nn.Module) -> tuple[Any, ...]:
    verdict = result.receipt["verdict"]
    return whole(model), result.forgot, result.why, result.receipt["weights_sha256"], verdict


def audited(models: dict[str, nn.Module], **given: Any) -> tuple[Any, ...]:
    report = ff.audit(models, **given, sequences=True, progress=False)
    hashes = {name: one["weights_sha256"] for name, one in report.settings["models"].items()}
    return report.verdict, report.reasons, repr(report.rows), hashes, report.settings["overlap"], report.settings["forget_set"]


def calls(rank: int, world: int, folder: Path) -> None:
    names = ("forget", "retain", "nonmember")
    base, made = net(), {}
    made["base"] = whole(base)
    for method in METHODS:
        alone = call(base, method, sets(*names))
        made[method, "alone"] = state_of(alone, alone.model)
        for kind, wrap in HELD.items():
            for part in ("same", "sampler"):
                model = wrap(base)
                result = call(model, method, sets(*names, parts=part == "sampler"))
                made[method, kind, part] = state_of(result, result.model)
                made[method, kind, part, "given"], made[method, kind, part, "ranks"] = whole(model), result.receipt["ranks"]
            model = wrap(base)
            result = call(model, method, sets(*names), inplace=True)
            made[method, kind, "inplace"] = state_of(result, model)
            made[method, kind, "inplace", "is given"] = result.model is model
            made[method, kind, "still runs"] = bool(torch.isfinite(model(torch.ones(2, LENGTH, dtype=torch.int64))).all())
    tied = net(tied=True)
    alone = call(tied, "npo", sets(*names))
    made["tied", "alone"] = state_of(alone, alone.model)
    for kind, wrap in HELD.items():
        model = wrap(tied)
        result = call(model, "npo", sets(*names), inplace=True)
        made["tied", kind] = state_of(result, model)
        made["tied", kind, "is tied"] = model_of(model).head.weight is model_of(model).embedding.weight
    others = {"unlearned": call(base, "npo", sets(*names)).model, "retrained": net(tied=True)}
    held = ("forget", "retain", "test")
    made["audit", "alone"] = audited({"original": base, **others}, **sets(*held))
    for kind, wrap in HELD.items():
        for part in ("same", "sampler"):
            models = {"original": wrap(base), "unlearned": wrap(others["unlearned"]), "retrained": others["retrained"]}
            made["audit", kind, part] = audited(models, **sets(*held, parts=part == "sampler"))
    torch.save(made, folder / f"{rank}.pt")


def model_of(model: nn.Module) -> Any:
    return getattr(model, "module", model)


def smoke(rank: int, world: int, folder: Path) -> None:
    """One call of each: what must hold on every change."""
    base, made = net(), {}
    for name, unlearned, held, parts in (("alone", base, base, False), ("together", fsdp(base), ddp(base), True)):
        result = call(unlearned, "gradient_difference", sets("forget", "retain", "nonmember", parts=parts), epochs=1)
        report = audited({"original": held}, **sets("forget", "retain", "test", parts=parts), attacks=["loss"], intervals=False)
        made[name] = (*state_of(result, result.model), report)
    torch.save(made, folder / f"{rank}.pt")


def resumed(rank: int, world: int, folder: Path) -> None:
    """A call whose last rank stops in its fifth step, and the same call again."""
    base, made, given = net(), {}, sets("forget", "retain", "nonmember")
    alone = call(base, "npo", given)
    made["alone"], made["base"] = state_of(alone, alone.model), whole(base)
    for kind, wrap in HELD.items():
        options = {"checkpoint": folder / f"{kind}.checkpoint", "checkpoint_every": 0.0, "forward": stumbling}
        seen["left"] = 5 if rank == world - 1 else -1
        model = wrap(base)
        try:
            call(model, "npo", given, inplace=True, **options)
        except Exception as error:
            made[kind, "said"] = f"{type(error).__name__}: {error}"
        made[kind, "given"] = whole(model)
        dist.barrier()
        made[kind, "step"] = torch.load(folder / f"{kind}.checkpoint", weights_only=True)["step"]
        dist.barrier()
        seen["left"] = -1
        result = call(model, "npo", given, inplace=True, **options)
        made[kind] = state_of(result, model)
    torch.save(made, folder / f"{rank}.pt")


seen = {"left": -1}


def stumbling(model: nn.Module, inputs: Any) -> Tensor:
    if model.training and torch.is_grad_enabled():
        seen["left"] -= 1
        if seen["left"] == 0:
            raise ZeroDivisionError("out of luck")
    return model(**inputs)


def adopted() -> dict[str, nn.Module]:
    """GPT-2 and Llama from configs, and adapters on the latter."""
    import peft
    import transformers

    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=4, n_head=2, **ids, **dropout)
    llama = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, **ids
    )
    made = {"gpt2": transformers.GPT2LMHeadModel(gpt2), "llama": transformers.LlamaForCausalLM(llama)}
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    made["lora"] = peft.get_peft_model(copy.deepcopy(made["llama"]), lora)
    return {name: model.eval() for name, model in made.items()}


def of_transformers(rank: int, world: int, folder: Path) -> None:
    made, held = {}, torchvision_here.declared()
    for name, base in adopted().items():
        for method in ("npo", "rmu"):
            alone = call(base, method, sets("forget", "retain", "nonmember"), epochs=1)
            made[name, method, "alone"] = state_of(alone, alone.model)
            for kind, wrap in HELD.items():
                model = wrap(base)
                result = call(model, method, sets("forget", "retain", "nonmember", parts=True), inplace=True, epochs=1)
                made[name, method, kind] = state_of(result, model)
        for kind, wrap in {"alone": copy.deepcopy, **HELD}.items():
            models = {"original": wrap(base), "unlearned": wrap(alone.model)}
            made[name, "audit", kind] = audited(models, **sets("forget", "retain", "test", parts=kind != "alone"))
    del held
    torch.save(made, folder / f"{rank}.pt")


def failing(rank: int, world: int, folder: Path) -> None:
    """Calls that can't go well: what each rank is told, and whether its model is as it was."""
    base, made = net(), {}
    names = ("forget", "retain", "nonmember")

    def attempt(name: str, work: Any) -> None:
        model = fsdp(base)
        began, said = time.monotonic(), "nothing"
        try:
            work(model)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        after = whole(model)
        made[name] = (said, time.monotonic() - began, all(torch.equal(after[key], value) for key, value in whole(base).items()))
        dist.barrier()

    def stumble(model: nn.Module, inputs: Any) -> Tensor:
        if rank == 1 and (model.training or name_of["audit"]):
            raise ZeroDivisionError("out of luck")
        return model(**inputs)

    def other_labels() -> dict[str, Any]:
        given = sets(*names)
        if rank:
            changed = texts("retain")
            changed[0]["labels"][-1] = -100
            given["retain"] = DataLoader(changed, batch_size=5, collate_fn=padded)  # type: ignore[arg-type]
        return given

    name_of = {"audit": False}
    attempt("other labels", lambda model: call(model, "npo", other_labels(), inplace=True))
    attempt("other method", lambda model: call(model, ("gradient_difference", "simnpo")[rank], sets(*names), inplace=True))
    attempt("shared", lambda model: call(model, "npo", sets(*names) | {"retain": sets("forget")["forget"]}, inplace=True))
    attempt("one fails", lambda model: call(model, "npo", sets(*names), inplace=True, forward=stumble))
    name_of["audit"] = True
    held = sets("forget", "retain", "test")
    attempt("one fails in the audit", lambda model: ff.audit({"original": model}, **held, sequences=True, progress=False, forward=stumble))
    torch.save(made, folder / f"{rank}.pt")


def dying(rank: int, world: int, folder: Path) -> None:
    """The rank of the environment's choice is killed at work."""
    _ranks.SILENCE = 3.0
    base = net()
    model = ddp(base)

    def die(inner: nn.Module, inputs: Any) -> Tensor:
        if rank == int(os.environ["DIES"]) and (inner.training or os.environ["CALL"] == "audit"):
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(**inputs)

    def work() -> Any:
        if os.environ["CALL"] == "audit":
            held = sets("forget", "retain", "test")
            return ff.audit({"original": model}, **held, sequences=True, progress=False, forward=die)
        return call(model, "npo", sets("forget", "retain", "nonmember"), inplace=True, forward=die)

    _ends(folder, rank, base, model, work)
