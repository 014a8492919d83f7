"""A request as it came: what it asks, whether it is one that was done already, and whether the model and the data fit the journal."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from .._data import Source
from .._files import jsonable
from .._text import visible
from ..auditing.proof.hashes import of_digests
from ..auditing.shadow.design import digests
from ..methods.kind import Kind
from ..methods.registry import Method
from ..methods.request import Sets, kind_asked
from .past import Past, of_classes, sample_hashes
from .store import Done

LONGEST_ID = 200
ASKED = ("method", "options", "classes", "seed", "budget", "precision", "forget")  # what makes two requests the same one


SEQUENCES = "sequences"  # the entry of a request about a language model; others have none


def kind_in(done: list[Done]) -> Kind:
    """What the journal's requests are about; classifiers', where there is none yet."""
    return kind_asked(any(one.request.get(SEQUENCES, False) for one in done))


def must_fit(done: list[Done], kind: Kind) -> None:
    """Refuses a method for language models among requests about a classifier, and the other way round."""
    if done and kind_in(done) is not kind:
        held, other = ("sequences", "classes or samples") if kind_in(done) is kind_asked(True) else ("classes or samples", "sequences")
        raise ValueError(f"method: it forgets {other}, and the journal's requests are about {held}; accepted is a method for these")


def checked_id(id: Any) -> str:
    if not isinstance(id, str) or not 0 < len(id) <= LONGEST_ID:
        raise ValueError(f"id: got {id!r}; accepted is a text of 1 to {LONGEST_ID} characters, e.g. a ticket's number")
    return id


def asked(
    method: Method, classes: list[int], forget: Source | None, *, seed: int, budget: Any, precision: Any, kind: Kind
) -> tuple[dict[str, Any], Tensor | None]:
    """What a request asks, as JSON values, and the digests of its forget set, sorted; ``None`` where there are none.

    Raises:
        TypeError: single samples that no hash can name.
    """
    about: dict[str, Any] | None = None
    hashed: Tensor | None = None
    part = None if forget is None else of_classes(forget, classes)
    if part is not None:
        about = {"samples": len(part), "samples_sha256": None, "reason": None}
        try:
            found = sample_hashes(part)
            about["samples_sha256"], hashed = of_digests(found), digests(sorted(found))
        except TypeError as error:
            if not classes:
                raise TypeError(f"forget: {error}. Give single samples as they are before augmentation") from error
            about["reason"] = str(error)
    request = {
        "method": method.name, "options": method.receipt(), "classes": classes, "seed": seed, "budget": budget, "precision": precision,
        "forget": about, **({SEQUENCES: True} if kind is kind_asked(True) else {}),
    }  # fmt: skip
    return json.loads(json.dumps(jsonable(request))), hashed


def must_be_same(done: Done, request: dict[str, Any]) -> None:
    """Refuses another request under the id of one that was done."""
    other = [name for name in ASKED if done.request[name] != request[name]]
    if other:
        names = "; ".join(f"{name} was {_short(done.request[name])}, now {_short(request[name])}" for name in other)
        raise ValueError(f"id: {visible(done.id)!r} is in the journal as another request: {names}. Give this one an id of its own")


def _short(value: Any) -> str:
    if isinstance(value, dict) and value.get("samples_sha256"):
        return f"{value['samples']} samples ({value['samples_sha256'][:12]}…)"
    return visible(json.dumps(value))


def state_of(sha256: str, done: list[Done]) -> str | None:
    """Which of the journal's weights these are; ``None``: none of them. The latest counts where several have the same."""
    after = next((one.id for one in reversed(done) if one.request["weights_sha256"]["after"] == sha256), None)
    if after is not None:
        return f"after {after}"
    return "original" if done and done[0].request["weights_sha256"]["before"] == sha256 else None


def must_be_in(sha256: str, done: list[Done], *, repeated: bool) -> None:
    """Refuses a model with other weights than the original or the last request's result; ``repeated``: than any in the journal."""
    state = state_of(sha256, done)
    if not done or state == "original" or (state is not None and (repeated or state == f"after {done[-1].id}")):
        return
    got = "those of no model in this journal" if state is None else f"those {visible(state)}"
    raise ValueError(
        f"model: its weights ({sha256[:12]}…) are {got}; accepted are the original's ({done[0].request['weights_sha256']['before'][:12]}…) "
        f"or those after the last request {visible(done[-1].id)!r} ({done[-1].request['weights_sha256']['after'][:12]}…), from which a new "
        "request starts. journal.model(net) gives them; a model that was trained on since needs a journal of its own"
    )


def clean(sets: Sets, past: Past, classes: list[int], *, drop: bool, by_content: bool) -> tuple[Sets, dict[str, Any]]:
    """The sets without what was forgotten earlier, and what was found in them, by set."""
    kept, found = Sets(sets.retain, sets.forget, sets.nonmember, sets.test), {}
    if sets.retain is not None:
        kept.retain, found["retain"] = past.clean(sets.retain, drop=drop, by_content=by_content)
    if sets.nonmember is not None:
        kept.nonmember, found["nonmember"] = past.clean(sets.nonmember, drop=drop, by_content=by_content)
    if not classes:  # single samples, which are compared with unseen ones
        if sets.forget is not None:
            kept.forget, found["forget"] = Past(past.classes, {}).clean(sets.forget, drop=drop, by_content=False)
        kept.test = past.unseen(sets.test)
    return kept, {name: about for name, about in found.items() if about}
