"""The small causal language models of ``facts.py``: net, training, and what is measured on them."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastforget._files import write_whole
from fastforget.adapters import scores
from fastforget.adapters._texts import UNREAD, Texts
from fastforget.ops import membership

from .facts_data import World

LONGEST = 48  # tokens


class Layer(nn.Module):
    """Causal attention and two linear layers, each after a layer norm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norms[1](x))


class Net(nn.Module):
    """A transformer: ``input_ids`` int64[B, T] to logits float32[B, T, words].

    ``attention_mask`` is taken as the other models take it and needs no use: padding stands on the right, where no word looks.
    """

    def __init__(self, words: int, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(LONGEST, width)
        self.layers = nn.ModuleList([Layer(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Plan:
    """How nets are trained: ``epochs`` over the texts in batches of ``batch``, with each fact ``repeats`` times an epoch beside them."""

    epochs: int = 3
    batch: int = 32
    repeats: int = 8
    lr: float = 3e-3
    weight_decay: float = 0.01
    width: int = 96
    layers: int = 4


@dataclass(frozen=True)
class Trained:
    """A net, and its cost: sample passes (forward and backward) and processor seconds."""

    net: Net
    passes: int
    seconds: float


def read_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labels that are read; a position's logits belong to the next label."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=UNREAD)


def train(world: World, groups: tuple[str, ...], seed: int, plan: Plan) -> Trained:
    """A net trained on the texts and the facts of these groups, from scratch."""
    began, generator = time.thread_time(), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(len(world.words), plan.width, plan.layers)
    texts, facts = world.texts["train"], [one for group in groups for one in world.facts[group].samples]
    steps = plan.epochs * math.ceil(len(texts) / plan.batch)
    optimizer = torch.optim.AdamW(net.parameters(), plan.lr, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, total_steps=steps, pct_start=0.1)
    passes = 0
    for _ in range(plan.epochs):
        order = torch.randperm(len(texts), generator=generator).split(plan.batch)
        again = torch.cat([torch.randperm(len(facts), generator=generator) for _ in range(plan.repeats)]).tensor_split(len(order))
        for at, told in zip(order, again, strict=True):
            optimizer.zero_grad()
            for batch in ([texts.samples[i] for i in at.tolist()], [facts[i] for i in told.tolist()]):
                padded = texts.collate(batch)
                read_loss(net(padded["input_ids"]), padded["labels"]).backward()
                passes += len(batch)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return Trained(net.eval(), passes, time.thread_time() - began)


def write(file: Path, trained: Trained) -> None:
    """Keeps a net, whole or not at all."""
    held = io.BytesIO()
    torch.save({"weights": trained.net.state_dict(), "passes": trained.passes, "seconds": trained.seconds}, held)
    write_whole(file, held.getvalue())


def read(file: Path, words: int, plan: Plan) -> Trained:
    """A net that was kept."""
    kept, net = torch.load(file, weights_only=True), Net(words, plan.width, plan.layers)
    net.load_state_dict(kept["weights"])
    return Trained(net.eval(), kept["passes"], kept["seconds"])


LOW = 0.4  # of a sample's tokens, those with the lowest probability: MUSE's Min-40%


@dataclass(frozen=True)
class Said:
    """What a net says of each sample's labels: mean loss, that of the :data:`LOW` least probable ones, how many there are, and whether the
    greedy text is exactly these."""

    loss: Tensor
    low: Tensor
    tokens: Tensor
    exact: Tensor


@torch.no_grad()
def said(net: nn.Module, texts: Texts) -> Said:
    """Figures of every sample, [N] each."""
    net.eval()
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(texts), 64):
        batch = texts.collate(texts.samples[start : start + 64])
        one = membership.token_scores(net(batch["input_ids"]), batch["labels"], k=(LOW,))
        # the greedy text is the answer where each word of the answer is the most probable one after those before it
        parts.append((one.loss, -one.min_k[:, 0], one.length, one.first.sum(1) == one.length))
    return Said(*(torch.cat(column) for column in zip(*parts, strict=True)))


def attack(members: Tensor, others: Tensor) -> float:
    """AUC of a loss attack: 0.5 where the two can't be told apart."""
    return float(membership.roc_stats(-members, -others, fprs=()).auc)


def quality(net: nn.Module, retrained: nn.Module, world: World) -> float:
    """TOFU's forget quality: a p-value, of the truth ratios of forgotten facts in the way held out against a retrained net's."""
    ratios = []
    for one in (net, retrained):
        right, wrong = said(one, world.held["forget"]).loss, said(one, world.wrong["forget"]).loss
        ratios.append(scores.truth_ratio(right, wrong.unflatten(0, (len(right), -1))))
    return scores.forget_quality(*ratios).pvalue


def figures(net: nn.Module, world: World) -> dict[str, float]:
    """Every column of the table but the costs."""
    facts = {group: said(net, world.facts[group]) for group in ("forget", "keep", "unseen")}
    held = {group: said(net, world.held[group]) for group in ("forget", "keep", "unseen")}
    text = said(net, world.texts["unseen"])
    p = {group: float(scores.answer_probability(one.loss).mean()) for group, one in facts.items()}
    p |= {f"{group}_held": float(scores.answer_probability(one.loss).mean()) for group, one in held.items()}
    return {
        **{f"p_{name}": value for name, value in p.items()},
        **{f"exact_{group}": float(facts[group].exact.double().mean()) for group in ("forget", "keep", "unseen")},
        "exact_forget_held": float(held["forget"].exact.double().mean()),
        "perplexity": math.exp(float((text.loss.double() * text.tokens).sum() / text.tokens.sum())),
        "auc": attack(facts["forget"].loss, facts["unseen"].loss),
        "auc_low": attack(facts["forget"].low, facts["unseen"].low),
    }
