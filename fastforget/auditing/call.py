"""``ff.audit``: models and sets in, a report out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import _ranks
from .._caller import Caller
from . import kinds, report
from .controls import controls
from .measure.oracles import LiRAVerdict, LossThreshold, Oracle, ShadowLogistic, logits_of
from .measure.quality import forgetting_quality
from .measure.relearn import relearn_time
from .request import checked
from .settings import settings_of
from .shadow import state
from .shadow.training import shadows
from .verdict import judge_all

if TYPE_CHECKING:
    from .proof.compare import Comparison


class Oracles:
    """Membership oracles for forgetting rates: ``ff.audit(..., oracles={"shadow": ff.audit.oracles.ShadowLogistic(…)})``."""

    LossThreshold = LossThreshold
    ShadowLogistic = ShadowLogistic
    LiRAVerdict = LiRAVerdict
    logits_of = staticmethod(logits_of)


class Audit:
    """``ff.audit``: measures what a model still knows. Call it with models and sets; it returns an :class:`AuditReport`.

    What else an audit offers hangs on it as attributes:

    - ``ff.audit.controls``: models that an audit must not pass
    - ``ff.audit.shadows``: trains shadow models for the attacks that need them; ``ff.audit.Shadows`` is what it returns, and ``load`` reads
    - ``ff.audit.oracles``: membership oracles for forgetting rates
    - ``ff.audit.compare``: several receipts side by side, as text and as a page
    - ``ff.audit.relearn_time``: how soon a model knows the forget set again
    - ``ff.audit.forgetting_quality``: the score of the NeurIPS'23 unlearning challenge
    - ``ff.audit.AuditReport``: the report; as a type it is ``fastforget.auditing.AuditReport``
    """

    AuditReport: TypeAlias = report.AuditReport
    Shadows: TypeAlias = state.Shadows
    oracles = Oracles
    controls = staticmethod(controls)
    forgetting_quality = staticmethod(forgetting_quality)
    relearn_time = staticmethod(relearn_time)
    shadows = staticmethod(shadows)

    def __call__(
        self,
        models: dict[str, nn.Module],
        *,
        forget: Any,
        retain: Any,
        test: Any,
        sequences: bool = False,
        attacks: Sequence[str] | None = None,
        oracles: dict[str, Oracle] | None = None,
        shadows: Any = None,
        population: Any = None,
        teacher: nn.Module | None = None,
        relearn: Sequence[str] = (),
        train: Any = None,
        intervals: bool = True,
        frozen_body: bool = False,
        check_overlap: bool = True,
        controls: bool | dict[str, nn.Module] = False,
        seed: int = 0,
        unpack: Callable[[Any], tuple[Any, Tensor]] | None = None,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> AuditReport:
        """Measures what each model still knows of the forget set, beside the original and a retrained model.

        One pass of every model over every set, in eval mode and without gradients, and then, on at most 4,096 samples of each, what lies
        below the answers: features, noised samples, a few training steps on copies. The models' training flags are
        restored and nothing else of them changes. Models on different devices are fine; each gets the batches on
        its own.

        Args:
            models: ``{"original": …, "unlearned": …, "retrained": …}``; further names are audited like
                "unlearned". If one is a DDP or FSDP2 model, every rank makes the call, with the same data or parts of a
                ``DistributedSampler``, and gets the same report. Without "retrained" the report says NO REFERENCE: most of these
                figures have no ideal value of their own. Further models whose names begin with "retrained" are references beside
                it, such as retrained from other seeds: by how far they lie apart the limits are widened.
            forget, retain, test: the samples to be forgotten, the kept training samples, and samples that no
                model was trained on; each a DataLoader, a Dataset or an (inputs, labels) pair.
            sequences: whether the models are causal language models, and labels token ids [N, T]: then everything is measured and judged
                by sequences (``docs/language.md``), and ``attacks`` are of "loss", "min_k", "min_k_plus" and "perplexity_ratio" (all).
            attacks: of "loss", "confidence", "entropy", "modified_entropy", "margin", "logit_confidence" and "attack_p"; "loss" is always
                measured, and without a list the first three are. With ``shadows`` also "lira", "lira_offline", "u_lira", "rmia",
                "rmia_offline" and "attack_r"; where none of these is named, all that the shadow models can serve are run but
                "rmia_offline".
            oracles: further membership oracles for the forgetting rate by name, beside the loss threshold that is calibrated on the
                original model: callables (logits [N, K], labels [N]) -> bool [N], such as those of ``fastforget.audit.oracles``. Each is
                asked about the forget set on every model, in the set's order.
            shadows: shadow models' answers, of ``ff.audit.shadows`` or its ``load``, over a pool with the forget and the test set (and the
                retain set, or its row has no figures).
            population: the samples that RMIA compares with, the same as were given to ``ff.audit.shadows``; no model was trained on them.
            teacher: for ZRF: the network, randomly initialised. It sees the forget set only.
            relearn: definitions of relearn time to measure, of "unsir", "golatkar" and "ain" (:func:`fastforget.audit.relearn_time`). Each
                trains a copy of every model on ``train``, which takes its time.
            train: the whole training set, for ``relearn``.
            intervals: 95 % confidence intervals beside the figures, under ``..._interval``; ``False`` leaves them out.
            frozen_body: say ``True`` where training never moves anything but the last layer (a frozen backbone): retrained models may then
                share the original's body, which otherwise makes them untrustworthy, and features are not compared.
            check_overlap: counts the samples of ``forget`` that ``retain`` or ``test`` hold too (same bytes and label; of sequences, same
                scored tokens, any padding; same index in parts of one data set) and refuses more than 1 % of them, plus twice what the
                twins within that set lead to expect, as ``ff.unlearn`` does. The counts are in ``settings["overlap"]`` and in the receipt.
            controls: ``True`` also audits models that must not pass (:func:`fastforget.audit.controls`), made of the original: it costs
                their passes and a short fine-tuning. Or models of your own by name; one named "retrained…" must pass, all others must
                not. They are listed apart, and if one misbehaves the verdict can't be PASS.
            seed: for data sets that augment at random, and for the bootstrap; same seed, same figures. The caller's random state is left
                alone.
            unpack: batch -> (inputs, labels), for batches that are not (x, y), (x, _, y) or dicts with "labels".
            forward: (model, inputs) -> logits, for models that don't map inputs to logits [batch, classes].
            batch_size: for sets that are not loaders.
            progress: show a bar when the output is a terminal.

        Returns:
            :class:`AuditReport`: ``print()`` it, read ``.rows`` and ``.verdict``, or write ``.to_json(path)`` and
            ``.to_html(path)``.

        Raises:
            TypeError, ValueError: an unknown attack, an empty set, samples to forget in another set, labels out of a model's range, NaN
                logits, an attack that needs shadow models or a population without them; the message names the set, the model and the first
                bad sample.
            RuntimeError: a model's forward failed.

        >>> import torch, fastforget as ff
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
        >>> net = torch.nn.Linear(4, 3)
        >>> sets = {"forget": (x[:9], y[:9]), "retain": (x[9:60], y[9:60]), "test": (x[60:], y[60:])}
        >>> report = ff.audit({"original": net}, **sets)
        >>> report.verdict
        'NO REFERENCE'

        A language model, by sequences:

        >>> words, table = torch.randint(5, (12, 6)), torch.nn.Embedding(5, 5)
        >>> parts = {name: (part, part) for name, part in zip(("forget", "retain", "test"), words.split(4))}
        >>> report = ff.audit({"original": table}, **parts, sequences=True)
        >>> report.settings["request"], report.figures[0].sequences.tokens
        ('sequence-wise', {'forget': 20, 'retain': 20, 'test': 20})
        """
        sets = {"forget": forget, "retain": retain, "test": test, "population": population, "train": train}
        settings: dict[str, Any] = {
            "sequences": sequences, "attacks": attacks, "relearn": relearn, "intervals": intervals, "frozen_body": frozen_body,
            "check_overlap": check_overlap, "seed": seed, "unpack": unpack, "forward": forward, "batch_size": batch_size,
        }  # fmt: skip
        further: dict[str, Any] = {"oracles": oracles, "shadows": shadows, "teacher": teacher, "controls": controls}
        with _ranks.together("audit", *(models.values() if isinstance(models, dict) else ())) as ranks:
            if ranks is None:
                return _audit(models, **sets, **settings, **further, progress=progress)
            ranks.options(**settings, models=list(models), further=[name for name, value in further.items() if value])
            whole = ranks.models(models)
            sets |= ranks.sets(sets, unpack=unpack, batch_size=batch_size, reading=kinds.asked(sequences).labels)
            made = _audit(whole, **sets, **settings, **further, progress=progress and ranks.first)
            ranks.agree("the report", (made.verdict, repr(made.rows)), _ranks.OTHER_BYTES)
            made.settings["ranks"] = len(ranks.ranks)
            return made

    @staticmethod
    def compare(receipts: Sequence[Any]) -> Comparison:
        """Several receipts side by side: methods, requests, dates. ``print()`` the result, or write ``.to_html(path)``.

        Each receipt is checked in itself, and one that doesn't hold is shown as such and not drawn. Those about another original model or
        other data stand under a heading of their own. What retraining took is read from ``facts={"retraining": {"seconds": 31.0,
        "passes": 45_000}}``, which ``report.write_receipt`` puts down.

        Args:
            receipts: paths of receipts' JSON files, or what ``report.receipt()`` returned.

        Returns:
            :class:`~fastforget.auditing.proof.compare.Comparison`.

        Raises:
            TypeError: something else than a list of these.
            ValueError: a file is missing, cut off or no receipt; the message names it.

        >>> import torch, fastforget as ff
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
        >>> models = {name: torch.nn.Linear(4, 3) for name in ("original", "unlearned", "retrained")}
        >>> report = ff.audit(models, forget=(x[:9], y[:9]), retain=(x[9:60], y[9:60]), test=(x[60:], y[60:]))
        >>> compared = ff.audit.compare([report.receipt(), report.receipt()])
        >>> [(group.letter, len(group.entries)) for group in compared.groups]
        [('A', 2)]
        """
        from .proof.compare import compare

        return compare(receipts)


def _audit(
    models: dict[str, nn.Module],
    *,
    forget: Any,
    retain: Any,
    test: Any,
    forward: Callable[[nn.Module, Any], Tensor] | None,
    seed: int,
    sequences: bool,
    **settings: Any,
) -> report.AuditReport:
    """:meth:`Audit.__call__` of models that this process holds alone."""
    started = time.perf_counter()
    with Caller() as caller, caller.aside("audit", seed):
        sets = {"forget": forget, "retain": retain, "test": test}
        kind = kinds.asked(sequences)
        request = checked(kind, models, sets, forward=caller.own(forward), seed=seed, **settings)
        measured = kind.measure(request)
        judgement = judge_all(measured.rows, kind.rule, frozen_body=request.frozen_body)
        described = settings_of(request, measured)
    return report.AuditReport(
        figures=[row for row in judgement.rows if not row.control],
        control_figures=[row for row in judgement.rows if row.control],
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        control_outcomes=judgement.controls,
        settings=described | {"seconds": time.perf_counter() - started, "torch": str(torch.__version__)},
        curves=measured.curves,
    )
