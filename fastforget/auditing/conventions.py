"""What the figures of every report mean."""

from __future__ import annotations

from .measure import intervals
from .measure.class_rule import CONVENTION as CLASS_THRESHOLDS
from .measure.svc import CONVENTION as MIA_EFFICACY

CONVENTIONS = {
    "accuracy": "share of samples whose largest logit is the label's; the first of equal logits wins",
    "attack": "score >= threshold means member; loss and entropy enter negated; no attack is trained",
    "auc": "probability that a member scores above a non-member, ties count one half; 0.5 means it can't tell",
    "balanced accuracy": "(1 + max(TPR - FPR)) / 2, threshold chosen on the same samples, so never under "
    "0.5 and a little high on small sets",
    "member if likelier than not": "of LiRA and U-LiRA: balanced accuracy at a likelihood ratio of 1, a threshold fixed beforehand; the "
    "figure of Hayes et al. (SaTML'25)",
    "TPR at a FPR": "largest true-positive rate with a false-positive rate of at most that; exact counts, ties not split",
    "class thresholds": CLASS_THRESHOLDS,
    "called NON-member (MIA-efficacy)": MIA_EFFICACY,
    "JS divergence, activation distance": "mean over the forget set of the distance of two models' softmax outputs, in float64; beside the "
    "retrained model's, where another retrained model would not be at 0 either",
    "interval": intervals.CONVENTION,
    "confidence": "the label's softmax probability; in 32-bit floats it ties at 1 where the loss still ranks",
    "forgetting rate": "(AF - BF) / BT (Forsaken, arXiv 2003.10933): of the forget samples that a fixed "
    "oracle called members on the original model, the share it no longer does. The oracle: loss <= "
    "threshold, of best balanced accuracy between retain and test samples on the original model, the same "
    "before and after",
    "weight distance": "Euclidean, per module that owns parameters (weight and bias together); buffers left "
    "out; relative = divided by the norm of the other model's layer",
    "prediction spread": "exp(entropy) of the predicted classes' shares: 1 = one class takes every forget sample",
    "order": "models see each batch in the same pass, in eval mode, without gradients",
}
