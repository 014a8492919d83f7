"""Padded texts, as the loader that they were audited with gave them: each alone without its padding, several padded on the right."""

from __future__ import annotations

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from ..._labels import IGNORED

Text = dict[str, Tensor]


class Texts(DataLoader[Text]):
    """A loader over padded texts.

    Args:
        input_ids, labels, attention_mask: [N, T] each; what the mask hides is padding, on either side.
    """

    def __init__(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> None:
        shown = attention_mask != 0
        arrays = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
        texts = [{name: array[n][at] for name, array in arrays.items()} for n, at in enumerate(shown)]
        super().__init__(texts, batch_size=32, collate_fn=_padded)  # type: ignore[arg-type]


Samples = tuple[Tensor, Tensor] | Texts


def _padded(texts: list[Text]) -> Text:
    filling = {"labels": IGNORED}
    return {
        name: pad_sequence([text[name] for text in texts], batch_first=True, padding_value=filling.get(name, 0)) for name in texts[0]
    }
