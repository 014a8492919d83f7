"""Fine-tuning on the data to keep, while the data to forget is taught wrong labels. Single samples then stand out: the verdict says so."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional as F

from fastforget.methods.engine import Task, check, cosine, descend, must_be_finite, steps, trainable, training

KEEP, FORGET, LABELS = 101, 102, 103  # purposes of seeds


@dataclass
class LabelFlip:
    """Options: steps, samples to keep and to forget in each, SGD's first rate, and the weight of the wrong labels."""

    steps: int = 80
    batch_size: int = 64
    rate: float = 0.02
    push: float = 0.3

    name = "label_flip"
    scope = "samples"  # classes as a whole, too
    gradients = ("train",)

    def __post_init__(self) -> None:
        check(self, whole=("steps", "batch_size"), numbers=("rate", "push"))

    def receipt(self) -> dict[str, Any]:
        return asdict(self)

    def run(self, task: Task) -> dict[str, Any]:
        if task.retain is None or task.forget is None:
            raise ValueError("retain, forget: label_flip needs both")
        size = min(self.batch_size, len(task.retain), len(task.forget))
        keep = task.cost.reading(task.retain.cycle(size, task.generator(KEEP), task.device, least=2))
        forget = task.cost.reading(task.forget.cycle(size, task.generator(FORGET), task.device, least=2))
        draw = task.generator(LABELS)
        optimizer = torch.optim.SGD(trainable(task.model), self.rate, momentum=0.9)
        total = 0.0
        with training(task, "train"):
            for step in steps(task, self.steps, "flip", each=2 * size):
                optimizer.param_groups[0]["lr"] = self.rate * cosine(step, self.steps)
                (x, y), (gone, known) = next(keep), next(forget)
                likely = torch.ones(len(known), task.outputs).scatter(1, known.cpu()[:, None], 0.0)
                likely[:, task.classes] = 0.0  # wrong labels: any but its own and those that are to go
                wrong = likely.multinomial(1, generator=draw)[:, 0].to(task.device)
                kept = F.cross_entropy(task.forward(task.model, x), y)
                loss = kept + self.push * F.cross_entropy(task.forward(task.model, gone), wrong)
                descend(task, optimizer, loss)
                total = must_be_finite(loss.detach(), "flip", self.rate, "Lower rate=")
        task.history.append({"phase": "flip", "loss": total, "steps": self.steps})
        return {"measured": {"last_loss": total}}
