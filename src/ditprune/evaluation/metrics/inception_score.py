"""Inception Score: how sure a classifier is of each image, and how varied its answers are.

exp of the mean over images of KL(p(y|x) ‖ p(y)). Source: Salimans et al. (2016), Eq. in 4; one
split, so the number does not depend on the order of images.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ditprune.evaluation.metrics.interval import Estimate, bootstrap


def compute(logits: Float[Tensor, "n c"], seed: int = 0) -> Estimate:
    """The score of images with these logits, and its interval over images."""
    log_probabilities = logits.double().log_softmax(1)
    probabilities = log_probabilities.exp()
    negative_entropies = (probabilities * log_probabilities).sum(1)
    num = len(logits)

    def statistic(weights: Tensor) -> float:
        mean = weights @ probabilities / num
        entropy = -(mean * mean.clamp(min=1e-300).log()).sum()
        return (weights @ negative_entropies / num + entropy).exp().item()

    value = statistic(logits.new_ones(num).double())
    return bootstrap(value, statistic, num, seed, lowest=1.0)
