"""The bars. One table, with the section of the performance notes (or the demand) each comes from.

Set some 20 to 30 % under figures measured on one core of a Zen 4 server; the figure for AVX2 is given where
the notes state one, and is the same where the notes found both levels equal.
"""

from __future__ import annotations

from dataclasses import dataclass

AT_LEAST, AT_MOST = ">=", "<="
STREAM = "section 7, masking"
NOISE = "section 7, noise"
ROWS = "section 7, row stats"
CHANNELS = "section 7, activation channel stats"
TOP_K = "section 7, top-k mask"
STEP = "section 7, UNSIR step"
SCORES = "section 7, six scores"
LIRA = "section 7, LiRA"
RMIA = "section 7, RMIA"
PEERS = "membership notes, 4"
CALL = "section 7, call overhead"


@dataclass(frozen=True)
class Target:
    """``vs`` names a variant (ours must be that many times as fast), ``limit`` (ours may take that many
    times as long), ``ns`` (a unit) or ``us`` (a call)."""

    vs: str
    bound: float
    avx2: float | None = None
    source: str = ""

    @property
    def sense(self) -> str:
        return AT_MOST if self.vs in ("limit", "ns", "us") else AT_LEAST

    def for_isa(self, isa: str) -> float | None:
        if isa == "avx512":
            return self.bound
        if isa == "avx2":
            return self.avx2
        return None


def _bars(section: str, **bars: float | tuple[float, float | None]) -> tuple[Target, ...]:
    """A bar a rival: ``(AVX-512, AVX2)``, or one number for both levels."""
    made = []
    for vs, bar in bars.items():
        bound, avx2 = bar if isinstance(bar, tuple) else (bar, bar)
        made.append(Target(vs, bound, avx2, section))
    return tuple(made)


def _masked_steps(size: str, elementwise: float) -> dict[tuple[str, str], tuple[Target, ...]]:
    """Of masked_sgd_ on one matrix; ``elementwise``: the bar against plain PyTorch where single weights are off."""
    single = _bars(STREAM, eager=elementwise, compiled=8.0, limit=1.5)
    return {
        ("masked_sgd_", f"{size}, rows, all on"): _bars(STREAM, eager=2.0, addcmul=0.95, compiled=0.95, limit=1.15),
        ("masked_sgd_", f"{size}, rows, 30 % on"): _bars(STREAM, eager=7.0, compiled=2.2, limit=0.45),
        ("masked_sgd_", f"{size}, bytes"): single,
        ("masked_sgd_", f"{size}, bits"): single,
    }


TARGETS: dict[tuple[str, str], tuple[Target, ...]] = {
    ("add_normal_", "1M"): _bars(NOISE, eager=(4.5, 2.7), compiled=(40.0, None), ns=(0.85, 1.45)),
    ("add_normal_", "11.2M"): _bars(NOISE, eager=(7.5, 4.5), prealloc=(4.0, None), compiled=(35.0, None), ns=(0.85, 1.45)),
    ("add_normal_", "ResNet-18"): _bars(NOISE, eager=(4.5, None), compiled=(35.0, None), ns=(0.9, None)),
    ("add_normal_", "ResNet-50"): _bars(NOISE, eager=(4.5, None), compiled=(35.0, None), ns=(0.9, None)),
    # The notes have no bars for the step with a gradient. Those of add_normal_, though its plain form here spares the product's
    # temporary; for AVX2 that leaves 2.7x and 4.4x (measured), and the bars stand a fifth under that.
    ("perturb_step_", "1M"): _bars(NOISE, eager=(4.5, 2.1), compiled=(40.0, None), ns=(0.85, 1.45)),
    ("perturb_step_", "11.2M"): _bars(NOISE, eager=(7.5, 3.5), prealloc=(4.0, None), compiled=(35.0, None), ns=(0.85, 1.45)),
    ("perturb_step_", "ResNet-18"): _bars(NOISE, eager=(4.5, None), compiled=(35.0, None), ns=(0.9, None)),
    ("perturb_step_", "ResNet-50"): _bars(NOISE, eager=(4.5, None), compiled=(35.0, None), ns=(0.9, None)),
    ("error_max_step_", "20x3x32x32"): _bars(STEP, eager=8.0, fused=4.5, compiled=2.2, limit=1.75),
    ("error_max_step_", "256x3x32x32"): _bars(STEP, eager=8.0, fused=4.5, compiled=2.2, limit=1.75),
    ("error_max_step_", "64x3x224x224"): _bars(STEP, eager=8.0, fused=4.5, compiled=1.3, limit=1.2),
    ("dampen_", "64K"): _bars(STREAM, published=35.0, eager=10.0, compiled=2.8, limit=1.15),
    ("dampen_", "1M"): _bars(STREAM, published=60.0, eager=40.0, compiled=1.25, limit=1.15),
    ("dampen_", "11.2M"): _bars(STREAM, published=22.0, eager=18.0, compiled=0.95, limit=1.15),
    ("dampen_", "ResNet-18"): _bars(STREAM, published=20.0, eager=7.0, compiled=0.95, limit=1.1),
    **_masked_steps("2.4M", elementwise=3.5),
    **_masked_steps("16.8M", elementwise=8.0),
    ("neuron_stats", "64x576"): _bars(ROWS, eager=3.5, compiled=4.0, limit=1.7),
    ("neuron_stats", "512x4608"): _bars(ROWS, eager=6.5, compiled=5.0, limit=1.15),
    ("neuron_stats", "4096x4096"): _bars(ROWS, eager=25.0, compiled=1.05, limit=1.2),
    ("neuron_stats", "128x64x32x32"): _bars(CHANNELS, eager=25.0, compiled=3.0, limit=1.5),
    ("saliency_mask", "ResNet-18"): _bars(TOP_K, published=150.0, partition=10.0, ns=0.8),
    ("saliency_mask", "ResNet-50"): _bars(TOP_K, published=150.0, partition=10.0, ns=0.8),
    ("membership_scores", "1000x10"): _bars(SCORES, eager=(28.0, 22.0), compiled=5.0, ns=1.7),
    ("membership_scores", "50000x10"): _bars(SCORES, eager=(28.0, 22.0), compiled=5.0, ns=1.7),
    ("membership_scores", "50000x100"): _bars(SCORES, eager=(15.0, 13.0), compiled=3.5, ns=1.3),
    ("membership_scores", "10000x1000"): _bars(SCORES, eager=(25.0, 20.0), compiled=7.0, ns=1.1),
    ("roc_stats", "1M"): _bars("membership notes, 6", ns=(20.0, None)),
    **{
        ("lira_stats", shape): _bars(LIRA, eager=15.0, numpy=70.0, compiled=20.0, ns=0.5)
        for shape in ("16x50000", "64x50000", "256x20000")
    },
    **{
        ("lira_stats", f"median {shape}"): _bars(LIRA, eager=10.0, published=6.0, ns=6.0)
        for shape in ("16x50000", "64x50000", "256x20000")
    },
    ("rmia_counts", "1000x2500"): _bars(RMIA, eager=100.0, sort=2.3, compiled=12.0),
    ("rmia_counts", "10000x10000"): _bars(RMIA, eager=2500.0, sort=9.0, compiled=150.0),
    ("rmia_counts", "50000x25000"): _bars(RMIA, eager=7500.0, sort=8.0, compiled=400.0),
    ("rmia_vote", "18x10000x10000"): _bars(PEERS, eager=(40.0, 20.0)),
    ("roc_bootstrap", "10K+10K, 1000 resamples"): _bars(PEERS, published=(50.0, 40.0)),
    ("add_normal_", "call, public"): _bars(CALL, us=3.5),
    ("error_max_step_", "call, public"): _bars(CALL, us=3.5),
    ("membership_scores", "call, op"): _bars(CALL, us=3.5),
    **{(op, "161-tensor call, public"): _bars(CALL, us=50.0) for op in ("add_normal_", "dampen_", "masked_adam_")},
}

# The bars that the project's acceptance names; the others are its own aims.
ACCEPTANCE = {
    ("add_normal_", "11.2M", "eager"),
    ("error_max_step_", "256x3x32x32", "eager"),
    ("error_max_step_", "256x3x32x32", "fused"),
    ("membership_scores", "50000x10", "eager"),
    ("membership_scores", "10000x1000", "eager"),
    ("dampen_", "1M", "published"),
}


# UNSIR's noise phase against the published procedure (acceptance, item 3), with the images used as published.
NOISE_PHASE = 4.0
NOISE_PHASE_CASES = {"3 images a class used, as in the published code"}


def judged(op: str, label: str, isa: str, seconds: dict[str, float], elements: int) -> list[dict[str, object]]:
    """Each bar of a row with what was reached; bars whose rival wasn't run are left out."""
    ours = seconds["ours"]
    results: list[dict[str, object]] = []
    for target in TARGETS.get((op, label), ()):
        bound = target.for_isa(isa)
        if bound is None:
            continue
        if target.vs == "ns":
            got = ours / elements * 1e9
        elif target.vs == "us":
            got = ours * 1e6
        elif target.vs not in seconds:
            continue
        else:
            got = ours / seconds["limit"] if target.vs == "limit" else seconds[target.vs] / ours
        met = got <= bound if target.sense == AT_MOST else got >= bound
        # what a kernel at the memory's limit would reach against that rival: a bar above it can't be met on this machine
        rival = target.sense == AT_LEAST and "limit" in seconds
        results.append(
            {
                "vs": target.vs,
                "sense": target.sense,
                "bound": bound,
                "got": got,
                "met": met,
                "at_limit": seconds[target.vs] / seconds["limit"] if rival else None,
                "source": target.source,
                "acceptance": (op, label, target.vs) in ACCEPTANCE,
            }
        )
    return results
