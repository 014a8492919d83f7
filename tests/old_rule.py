"""The rule's words in receipts that were written before its sentences were numbered; the checks are the same."""

OLD_RULE = (
    "Each model is compared with the one retrained without the forget set. Forgetting: its accuracy on the forget set (and on"
    " test samples of classes that the retain set lacks) must be within 2 points of the retrained model's, and the AUC of the"
    " loss attack (and of LiRA where shadow models were given), forget against test, within 0.05, or each within two standard"
    " errors of a difference where the sets are small; but never wider than half of the gap between the original and the "
    "retrained model, where the original lies outside. A gap beyond that is PARTIAL, and FAIL where more than half of the way"
    " from the original to the retrained model is still missing. Weights: FAIL where they are those of the original, where "
    "only the last layer was changed though retraining changes the others too, and, for whole classes, where the layers below"
    " the last moved less than 1 % as far as retraining moves them. Knowledge below the answers, for whole classes: if the "
    "AUC by which its logit tells a forgotten class from the kept ones is higher than the retrained model's by more than "
    "three standard errors and its odds, AUC / (1 - AUC), more than 5 times as high, at most PARTIAL. Power: if the original "
    "itself lies within the tolerance in every figure of forgetting, at most PARTIAL, since a model that forgot nothing could"
    " pass; the same without an original. Use: test accuracy on the kept classes may lie up to 2 points (or two standard "
    "errors of a difference) under the retrained model's; up to 10 points is PARTIAL, more is FAIL. The worst finding "
    "decides; if a control that must not pass does, the whole is at most PARTIAL. Without a retrained model there is NO "
    "REFERENCE and no verdict. This is evidence from measurements on these samples, not a proof or a privacy guarantee."
)
