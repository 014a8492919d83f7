"""``Journal``: requests in sequence. Each starts from what the one before left, and is in the folder whole or not at all."""

from __future__ import annotations

import contextlib
import datetime
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .. import _outputs, _weights
from .._caller import Caller
from .._data import Source, source
from .._files import BadFile
from .._modules import refuse_kind
from .._text import visible
from ..methods import checks
from ..methods.call import unlearn
from ..methods.cost import Cost, Phase
from ..methods.kind import Kind
from ..methods.registry import AUTO, method_of, suitable
from ..methods.request import Sets, kind_of
from ..methods.result import NotForgottenWarning, UnlearnResult
from ..methods.task import Forward, derived_seed
from .asked import asked, checked_id, clean, kind_in, must_be_in, must_be_same, must_fit, state_of
from .check import Check, must_be, row_of
from .loss import MOST, SOME, Loss, RetrainWarning, loss_of, task_of
from .past import Past
from .store import DIGESTS, FORGET, FORMAT, ORIGINAL, WEIGHTS, Busy, Done, Store
from .weights import filled, fits, kept_of

READ = 54  # purpose of a seed


class Journal:
    """Unlearning requests in sequence, kept in a folder.

    Args:
        path: the folder; made where there is none. What a killed process left half-written is removed.

    Raises:
        ValueError: the folder holds something else, or its files don't fit together; the message begins with the file's name.

    A request that is in the journal stays done: the same call again, in a script that is started anew after a kill, say, returns what is
    stored. Weights are kept as safetensors files (one a request), the data to forget as hashes alone. Reading needs no lock; of two
    processes that would write, one gets :class:`fastforget.journal.Busy`. Sequences of a language model are served as single samples are,
    by the methods for them; a journal is about these or about a classifier.

    >>> import tempfile, torch, fastforget as ff
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> net, keep, journal = torch.nn.Linear(4, 3), y != 0, ff.Journal(tempfile.mkdtemp())
    >>> result = journal.unlearn("first", net, "unsir", preset="paper", classes=[0], retain=(x[keep], y[keep]), forget=(x, y))
    >>> again = journal.unlearn("first", net, "unsir", preset="paper", classes=[0], retain=(x[keep], y[keep]), forget=(x, y))
    >>> journal.ids, torch.equal(result.model.weight, again.model.weight)
    (['first'], True)
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._store = Store(path)
        self._store.read()
        if self._store.half_written:
            with contextlib.suppress(Busy, OSError), self._store.lock():
                self._store.clean()

    def __repr__(self) -> str:
        return f"Journal({str(self._store.path)!r}: {len(self.ids)} requests)"

    @property
    def ids(self) -> list[str]:
        """The ids of the requests that were done, in order."""
        return [one.id for one in self._store.read()]

    @property
    def receipts(self) -> dict[str, dict[str, Any]]:
        """What each request's ``receipt.json`` holds, by id."""
        return {one.id: one.receipt for one in self._store.read()}

    @property
    def head(self) -> str | None:
        """The hash of the last receipt, and by it of the whole history: kept elsewhere, it shows later that nobody rewrote the journal."""
        done = self._store.read()
        return str(done[-1].receipt["sha256"]) if done else None

    # ------------------------------------------------------------------ unlearning

    def unlearn(
        self,
        id: str,
        model: nn.Module,
        method: Any = AUTO,
        *,
        forget: Any = None,
        retain: Any = None,
        nonmember: Any = None,
        test: Any = None,
        classes: Any = None,
        seed: int = 0,
        inplace: bool = False,
        progress: bool = True,
        drop_forget: bool = False,
        check_overlap: bool = True,
        budget: int | str | None = None,
        precision: str | None = None,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
        **options: Any,
    ) -> UnlearnResult:
        """Runs :func:`fastforget.unlearn` from the weights that the last request left, and keeps what it did.

        Args:
            id: names the request, e.g. a ticket's number. If it is done already, the stored result is returned and nothing runs.
            model: gives the architecture; its weights must be the original's, or those that the last request left.
            retain, nonmember: refused where they hold samples of classes forgotten so far, or more samples that were forgotten by their
                content than twins explain (``check_overlap=False``: not looked for).
            forget: as for :func:`fastforget.unlearn`; single samples are refused where they are of classes forgotten so far.
            drop_forget: leaves all these out instead of refusing them.
            test: measures the request; and what all requests cost so far (:meth:`loss`; without it up to 2,000 samples of ``retain`` do),
                and whether classes of earlier requests are back. It may hold all classes.
            inplace: writes the result into ``model``, after the request is in the journal.
            method, classes, seed, progress, budget, precision, unpack, forward, **options: as for :func:`fastforget.unlearn`.

        Returns:
            UnlearnResult; its ``receipt["journal"]`` says what was left out, what is lost, and what was looked at again. A stored one has
            the same weights, receipt and history, and of ``cost`` the counts alone.

        Raises:
            ValueError: another request has this id; other weights; data that would bring something back. Also as
                :func:`fastforget.unlearn`.
            Busy: another process writes to this journal.

        A run that fails, is interrupted or killed leaves the journal and ``model`` as they were (in its last instant: is in the journal,
        and returned by the same call). A :class:`RetrainWarning` says that all
        requests lost more than the first one did and a point, by more than two standard errors; a :class:`NotForgottenWarning` that a
        class of an earlier request is back.
        """
        data = {"retain": retain, "forget": forget, "nonmember": nonmember, "test": test}
        settings = {
            "progress": progress, "drop_forget": drop_forget, "check_overlap": check_overlap, "budget": budget, "precision": precision,
            "unpack": unpack, "forward": forward, **options,
        }  # fmt: skip
        checked_id(id)
        auto = isinstance(method, str) and method == AUTO
        chosen = method_of(suitable(classes, forget=forget, retain=retain, nonmember=nonmember)[0] if auto else method, options)
        checks.model_device(model)
        given, write = self._unlearn(id, model, method, chosen, data, classes, seed, inplace, settings)
        # the last thing that is done: the lock's end and the caller's would find the model written, and could still be interrupted
        return given if write is None else write.give(given)

    def _unlearn(
        self,
        id: str,
        model: nn.Module,
        method: Any,
        chosen: Any,
        data: dict[str, Any],
        classes: Any,
        seed: int,
        inplace: bool,
        settings: dict[str, Any],
    ) -> tuple[UnlearnResult, _weights.Overwriting | None]:
        """The result of :meth:`unlearn`, in the journal when it is returned, and what writes it into ``model`` where that is asked for.

        ``chosen`` is what ``method`` names; ``data`` the sets, and ``settings`` all else that :func:`fastforget.unlearn` is called with.
        """
        aside = derived_seed(checks.seed(seed), READ)
        with self._store.lock():
            done = self._store.read()
            with Caller() as caller, caller.aside("Journal.unlearn", aside):
                kind = kind_of(chosen)
                must_fit(done, kind)
                sets = Sets.read(settings["unpack"], kind.labels, **data)
                wanted = kind.wanted(chosen, classes, sets.forget)
                request, hashed = asked(
                    chosen, wanted, sets.forget, seed=seed, budget=settings["budget"], precision=settings["precision"], kind=kind
                )
                stored = next((one for one in done if one.id == id), None)
                if stored is not None:
                    must_be_same(stored, request)
                must_be_in(_weights.fingerprint(model), done, repeated=stored is not None)
                if stored is not None:
                    return self._stored(model, stored, inplace)
                past = Past.of(self._store, done)
                used, left_out = clean(
                    sets, past, wanted, drop=settings["drop_forget"], by_content=settings["check_overlap"]
                )
                start = self._state(model, done[-1]) if done else _weights.working_copy(model)
                original = kept_of(start)
            result = unlearn(
                start, method, forget=used.forget, retain=used.retain, nonmember=used.nonmember, test=used.test, seed=seed,
                classes=None if classes is None else wanted, **settings,
            )  # fmt: skip
            with Caller() as caller, caller.aside("Journal.unlearn", aside):
                reading = _outputs.reading(caller.own(settings["forward"]))
                rows = [row_of(one, past, result.model, None, sets.test, reading, kind) for one in done if one.request["classes"]]
                sets.retain = used.retain
                losses = self._losses(start, result.model, done, past.with_(wanted, id), sets, reading, kind)
                write = _weights.overwriting(model, result.model) if inplace else None
                now = kept_of(result.model)
            looked = [row for row in rows if row.figure]
            _warn(id, [row.id for row in looked if row.brought_back], losses)
            tensors = {WEIGHTS: now} if done else {ORIGINAL: original, WEIGHTS: now}
            kept = self._store.commit(
                len(done) + 1,
                {
                    "number": len(done) + 1, "id": id, "created": _now(), **request,
                    "previous": done[-1].receipt["sha256"] if done else None, "weights_sha256": result.receipt["weights_sha256"],
                },
                {
                    "format": FORMAT, "number": len(done) + 1, "id": id, "unlearning": result.receipt, "history": result.history,
                    "seconds": result.seconds, "left_out": left_out, "loss": {one.data: one.receipt() for one in losses},
                    "earlier": {row.id: asdict(row) for row in looked},
                },
                tensors if hashed is None else {**tensors, FORGET: {DIGESTS: hashed}},
            )  # fmt: skip
            return _result(result.model if write is None else model, kept, result.cost), write

    def _stored(self, model: nn.Module, done: Done, inplace: bool) -> tuple[UnlearnResult, _weights.Overwriting | None]:
        """The result of a request that was done, and what writes it into ``model`` where that is asked for."""
        after = self._state(model, done)
        given = _result(model if inplace else after, done, _counts(done.receipt["unlearning"]["cost"]))
        return given, _weights.overwriting(model, after) if inplace else None

    def _state(self, model: nn.Module, done: Done, name: str = WEIGHTS) -> nn.Module:
        """A copy of a model with the weights after a request (or, of the first one, before it)."""
        return filled(model, self._store.tensors(done, name))

    def _losses(
        self, start: nn.Module, now: nn.Module, done: list[Done], past: Past, sets: Sets, forward: Forward, kind: Kind
    ) -> list[Loss]:
        """What was lost since the original, on test data and on data to keep, as far as they are given and not forgotten."""
        retain = sets.retain and sets.retain.at_most(MOST, torch.Generator().manual_seed(SOME))
        data = [left for one in (sets.test, retain) if one is not None and (left := past.unseen(one)) is not None]
        if not data:
            return []
        original = self._state(start, done[0], ORIGINAL) if done else start
        first = self._state(start, done[0]) if done else now
        tasks = [task_of(model, forward, kind.head(model, forward, data[0])) for model in (original, first, now)]
        return [loss_of(one.name, *(kind.right(task, one) for task in tasks), counted=kind.counted) for one in data]

    # ------------------------------------------------------------------ what the journal knows

    def model(self, like: nn.Module, after: str | None = None) -> nn.Module:
        """A copy of ``like`` (the journal's architecture, whatever its weights) with the weights after a request, by default the last."""
        return self._state(like, self._done(after))

    def original(self, like: nn.Module) -> nn.Module:
        """A copy of ``like`` with the weights before the first request."""
        return self._state(like, self._store_first(), ORIGINAL)

    def _store_first(self) -> Done:
        done = self._store.read()
        if not done:
            raise ValueError(f"{self._store.path}: no request is in this journal yet, so it holds no weights")
        return done[0]

    def _done(self, id: str | None) -> Done:
        self._store_first()
        done = self._store.read()
        found = next((one for one in reversed(done) if id is None or one.id == id), None)
        if found is None:
            raise ValueError(f"after: got {id!r}; accepted are the ids of requests in this journal: {', '.join(one.id for one in done)}")
        return found

    def loss(self) -> Loss | None:
        """What all requests lost so far, by the last one that was measured: on ``test`` where it was given, else on ``retain``."""
        for one in reversed(self._store.read()):
            if measured := one.receipt["loss"]:
                return Loss.of(measured.get("test") or measured["retain"])
        return None

    @property
    def retrain_now(self) -> bool:
        """Whether :meth:`loss` is more than the first request's and a point, by more than two standard errors."""
        loss = self.loss()
        return loss is not None and loss.retrain

    def check(
        self,
        model: nn.Module,
        forget: Mapping[str, Any] | None = None,
        *,
        retain: Any = None,
        test: Any = None,
        nonmember: Any = None,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> Check:
        """Measures for every request so far whether a model has still forgotten it.

        Args:
            model: any model, such as one that was trained further after the last request.
            forget: each request's data to forget, by id: the journal keeps none, and knows it by its hashes. Requests whose data isn't
                given are measured on ``test``, if they are of classes.
            retain, test: on ``test`` (without it on up to 2,000 samples of ``retain``) what was lost since the original is measured.
            test, nonmember: unseen data that single samples are compared with, the first that is given.

        Returns:
            Check: a row a request. A class is forgotten where at most 1 % of its samples are answered right, single samples where the loss
            attack can't tell them from unseen ones (an AUC within two standard errors of 0.5, samples of forgotten classes left out).

        Raises:
            ValueError: an unknown id, or data that isn't what that request forgot.
        """
        refuse_kind("model", model)
        done, given = self._store.read(), dict(forget or {})
        if unknown := [id for id in given if id not in [one.id for one in done]]:
            known = ", ".join(visible(one.id) for one in done) or "none yet"
            raise ValueError(f"forget: {unknown[0]!r} is no request of this journal; accepted are {known}")
        with Caller() as caller, caller.aside("Journal.check", derived_seed(0, READ)):
            reading = _outputs.reading(caller.own(forward))
            kind = kind_in(done)
            sets = Sets.read(unpack, kind.labels, retain=retain, test=test, nonmember=nonmember, forget=None)
            past = Past.of(self._store, done)
            data: dict[str, Source] = {
                one.id: must_be(one, source(given[one.id], name=f"forget[{one.id!r}]", unpack=unpack, reading=kind.labels))
                for one in done
                if one.id in given
            }
            rows = []
            for one in done:
                unseen = sets.test if one.request["classes"] else sets.test or sets.nonmember
                rows.append(row_of(one, past, model, data.get(one.id), unseen, reading, kind))
            losses = []
            if done and fits(model, self._store.tensors(done[0], WEIGHTS)) is None:
                losses = self._losses(model, model, done, past, sets, reading, kind)
            state = state_of(_weights.fingerprint(model), done) or "none of the journal's"
        return Check(state, rows, losses[0] if losses else None)

    def verify(self, head: str | None = None) -> int:
        """Reads every file and holds it against its hash, its receipt and the chain of receipts. Returns the number of requests.

        Args:
            head: what :attr:`head` once was; it must be the hash of one of the receipts.

        Raises:
            ValueError: something doesn't fit; the message begins with the file's name.
        """
        done = self._store.verify()
        if head is not None and head not in [one.receipt["sha256"] for one in done]:
            raise BadFile(f"{self._store.path}: none of its {len(done)} receipts has the hash {head[:12]}…: it was rewritten or cut")
        return len(done)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _warn(id: str, back: list[str], losses: list[Loss]) -> None:
    """Before the request is written: where the user makes a warning an error, nothing is."""
    if back:
        names = ", ".join(repr(visible(one)) for one in back)
        warnings.warn(f"fastforget: request {visible(id)!r} brought back what {names} forgot", NotForgottenWarning, stacklevel=4)
    if losses and losses[0].retrain:
        warnings.warn(f"fastforget: after request {visible(id)!r}, {losses[0]}", RetrainWarning, stacklevel=4)


def _result(model: nn.Module, done: Done, cost: Cost) -> UnlearnResult:
    about = done.receipt["unlearning"]
    names = ("number", "id", "left_out", "loss", "earlier")
    receipt = {**about, "journal": {name: done.receipt[name] for name in names}}
    verdict = about["verdict"]
    return UnlearnResult(model, done.receipt["history"], done.receipt["seconds"], receipt, verdict["forgot"], verdict["why"], cost)


def _counts(receipt: dict[str, Any]) -> Cost:
    """A cost of its counts alone."""
    cost = Cost()
    cost.budget, cost.stopped_by_budget = receipt["budget"], receipt["stopped_by_budget"]
    cost.phases = {name: Phase(**counts) for name, counts in receipt["phases"].items()}
    return cost
