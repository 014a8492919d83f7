"""The report of an audit: its figures and verdict, and the ways to show and to write them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from .._files import jsonable, write_json, write_whole
from . import kinds
from .conventions import CONVENTIONS
from .figures import AuditFigures
from .names import WHY
from .show import text
from .show.lines import Line, resolves
from .verdict import judge_all

FORMAT = "fastforget report 1"


@dataclass(repr=False)
class AuditReport(AuditFigures):
    """An audit's result. ``print()`` it; ``.rows`` holds one dict a model; ``.verdict`` is that of the unlearned model(s).

    ``verdict`` is "PASS", "PARTIAL", "FAIL", "NO REFERENCE" (no retrained model given) or "NOTHING TO JUDGE"
    (no model but the original and the retrained one); ``reasons`` says why, by the rule in
    ``settings["rule"]``. Where controls were audited, ``controls`` says of each its status and whether it
    ``behaved``, and ``control_rows`` holds their figures. ``figures`` and ``control_figures`` are the rows
    as objects.
    """

    def row(self, model: str) -> dict[str, Any]:
        """The row of one model or control."""
        return self.figures_of(model).to_dict()

    def of(self, *models: str) -> AuditReport:
        """The same audit with these models alone beside the original, the retrained ones and the controls: what an audit without the
        others would have measured, judged again. So a receipt is about one model, although several were compared.

        Raises:
            KeyError: a model isn't among those that were audited.
        """
        for model in models:
            self.figures_of(model)
        left_out = {row.model for row in self.judged_figures()} - set(models)
        rows = [row for row in (*self.figures, *self.control_figures) if row.model not in left_out]
        judgement = judge_all(rows, kinds.of(self.settings["request"]).rule, frozen_body=self.settings["frozen_body"])

        def kept(by_model: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in by_model.items() if name not in left_out}

        roc = {name: {attack: kept(curves) for attack, curves in attacks.items()} for name, attacks in self.curves["roc"].items()}
        loss = self.curves["loss"] | {"share": kept(self.curves["loss"]["share"])}
        exposed = [sample | {"score": kept(sample["score"])} for sample in self.curves["exposed"]]
        return replace(
            self,
            figures=[row for row in judgement.rows if not row.control],
            control_figures=[row for row in judgement.rows if row.control],
            verdict=judgement.verdict,
            reasons=judgement.reasons,
            control_outcomes=judgement.controls,
            settings=self.settings | {"models": kept(self.settings["models"])},
            curves=self.curves | {"roc": roc, "loss": loss, "exposed": exposed},
        )

    def judged(self) -> list[dict[str, Any]]:
        """The rows that the verdict is about: all but the original and the retrained model."""
        return [row.to_dict() for row in self.judged_figures()]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; a figure that is undefined (NaN) or infinite is null. They are described by schema/report.json,
        in the folder of ``fastforget.auditing``.
        """
        whole = {
            "format": FORMAT,
            "verdict": self.verdict,
            "reference": self.settings["reference"] or "no reference",
            "reasons": self.reasons,
            "rows": self.rows,
            "controls": self.controls,
            "control_rows": self.control_rows,
            "settings": self.settings,
            "conventions": CONVENTIONS,
            "reading": WHY,
            "curves": self.curves,
        }
        return jsonable(whole)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Writes the report as JSON, whole or not at all (OSError)."""
        write_json(path, self.to_dict())

    def to_html(
        self,
        path: str | PathLike[str],
        *,
        title: str = "Forgetting audit",
        facts: dict[str, str] | None = None,
        noise: Any = None,
        timing: dict[str, float] | None = None,
        passes: dict[str, int] | None = None,
        about: str | None = None,
        class_names: list[str] | None = None,
        images: dict[str, Any] | None = None,
    ) -> None:
        """Writes the report as one self-contained page (no network, no script), whole or not at all
        (OSError).

        What the audit didn't measure (intervals, shadow-model attacks, probes, controls, exposed samples) is left out.

        Args:
            path: the file; its folder must exist.
            title: the page's headline.
            facts: further lines for the settings at the foot, such as the data and the network.
            noise: images to show, ``{caption: tensor[n, channels, height, width]}``; 1 or 3 channels.
            timing: seconds of each step, such as ``{"retrain": 31.0, "unlearn": 4.0}``; for further models by their names.
            passes: sample passes of each step (``UnlearnResult.cost.passes``; in training epochs times samples), by the same names.
            about: the model whose verdict and figures stand at the top, where several were audited to compare it with; ``None``: all.
            class_names: names for the class ids.
            images: pictures of the most exposed samples, ``{"forget": tensor[n, channels, height, width]}``, the whole forget set
                in its order, of any dtype; only those that are shown get into the file.

        Raises:
            TypeError, ValueError: ``images`` or ``noise`` are no such tensors.
            KeyError: ``about`` isn't a model that was audited.
        """
        from .show.page import render

        page = render(
            self,
            self if about is None else self.of(about),
            CONVENTIONS,
            title=title,
            facts=facts or {},
            noise=noise or {},
            timing=timing or {},
            passes=passes or {},
            class_names=class_names,
            images=images or {},
        )
        write_whole(path, page)

    def receipt(self, result: Any = None, *, ids: Iterable[Any] | None = None, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """The audit as a receipt: hashes of the models and of the forget set, method, seeds, versions, machine, figures, controls,
        verdict, and a hash over all of it; plain JSON values.

        Args:
            result: what :func:`fastforget.unlearn` returned; its method, options and seed are put down, and its hashes must be
                those of the models that were audited.
            ids: names of the forget samples, in any order; their hash is put down, not they.
            facts: further JSON values to put down.

        Raises:
            ValueError: ``result`` is of other models, or ``ids`` aren't one a sample.
        """
        from .proof.receipt import receipt

        return receipt(self, result, ids=ids, facts=facts)

    def write_receipt(self, path: str | PathLike[str], result: Any = None, **more: Any) -> dict[str, Any]:
        """Writes :meth:`receipt` to ``path`` (JSON) and as a page beside it (suffix .html), each whole or not at all (OSError).

        ``python -m fastforget verify PATH --model WEIGHTS.pt`` checks it. schema/receipt.json, in the folder of ``fastforget.auditing``,
        describes its entries.
        """
        from .proof.receipt import write

        written = self.receipt(result, **more)
        write(path, written)
        return written

    def lines(self, *, controls: bool = False) -> list[Line]:
        """The figures as lines of a group, a label and one cell a model: its text, and the ends of its interval where it has one. What
        ``str()`` and the page show; ``controls`` adds the controls' cells, last.
        """
        return text.audit_lines(self, controls=controls)

    def table(self) -> list[tuple[str, list[str], str]]:
        """:meth:`lines` as (label, one text a model such as "0.513 [0.47, 0.55]", group)."""
        return [(label, list(map(str, cells)), group) for group, label, cells in self.lines()]

    def resolves(self, fpr: str, attack: str = "loss") -> bool:
        """Whether an attack's non-members, the forget set's, are many enough for this false-positive rate ("1pct", "0.1pct")."""
        return resolves(self.figures, fpr, attack)

    def notes(self, *, intervals: str = "[low, high]", conventions: bool = True) -> list[str]:
        """What a reader must know about these particular figures.

        Args:
            intervals: how the reader sees the intervals.
            conventions: whether to say what the attacks beyond thresholds measure.
        """
        return text.notes(self, intervals=intervals, conventions=conventions)

    def headline(self) -> str:
        """What was asked to be forgotten, and the sizes of the sets."""
        return text.headline(self)

    def __str__(self) -> str:
        return text.report_text(self)
