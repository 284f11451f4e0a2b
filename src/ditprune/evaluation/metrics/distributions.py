"""How far is the distribution of images from that of real ones?

Each metric takes features [N, F], one row for each image:

* FID and sFID: the Fréchet distance of two normal distributions, by torchmetrics.
* KID: the squared MMD under the kernel (x·y / f + 1)³, unbiased. Source: Bińkowski et al.,
  Demystifying MMD GANs (2018), Eq. 4. Written here since the one in torchmetrics 1.9 is wrong
  unless there are as many real images as samples.
* Inception Score: exp of the mean over images of KL(p(y|x) ‖ p(y)). Source: Salimans et al. (2016),
  section 4. With one split, so that it does not depend on the order of images.
* Precision and recall: the share of samples near real images, and of real images near samples. An
  image is near if it is no farther from one of the others than that one's third nearest neighbour.
  Source: Kynkäänniemi et al. (2019), Eqs. 1 and 2, k = 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditprune.evaluation.metrics.interval import Interval, bootstrap

__all__ = [
    "frechet_distance", "inception_score", "kernel_distance", "moments", "precision", "recall",
]  # fmt: skip

# Resamples for the interval of FID: each takes the eigenvalues of an [f, f] matrix.
_MOST_RESAMPLES, _FEWEST_RESAMPLES, _MANY_FEATURES = 200, 20, 128
_BLOCK = 1000  # images that KID compares at once
_NUM_NEIGHBOURS = 3
_ROWS = 1000  # images whose distances to all others are in memory at once


def moments(features: Float[Tensor, "n f"]) -> dict[str, Tensor]:
    """The sums that `frechet_distance` needs of the reference.

    Returns:
        `sum` [f], `sum_outer` [f, f] (both float64) and `num_images`.
    """
    values = features.double()
    return {
        "sum": values.sum(0),
        "sum_outer": values.T @ values,
        "num_images": torch.tensor(len(values)),
    }


def frechet_distance(
    reference: Mapping[str, Tensor], features: Float[Tensor, "n f"], seed: int = 0
) -> Interval:
    """The Fréchet distance of two images or more to a reference, given by its `moments`.

    The interval is over the images; the reference is fixed. It takes 200 resamples for up to 128
    features and 20 for more.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    features, num_features = features.double(), features.shape[1]
    metric = FrechetInceptionDistance(_Features(num_features))
    metric.real_features_sum = reference["sum"].clone()
    metric.real_features_cov_sum = reference["sum_outer"].clone()
    metric.real_features_num_samples = reference["num_images"].clone()
    metric.update(features, real=False)
    return bootstrap(
        max(0.0, metric.compute().item()), _frechet_of_resample(reference, features),
        len(features), seed,
        _FEWEST_RESAMPLES if num_features > _MANY_FEATURES else _MOST_RESAMPLES, lowest=0.0,
    )  # fmt: skip


class _Features(nn.Identity):
    """Stands where torchmetrics expects a network: the features are already computed."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _frechet_of_resample(
    reference: Mapping[str, Tensor], features: Float[Tensor, "n f"]
) -> Callable[[Tensor], float]:
    """The distance as a function of how often each image counts.

    It takes the eigenvalues of a symmetric matrix: with L Lᵀ = Σ_r, tr (Σ_r Σ)^½ is
    Σ √eig(Lᵀ Σ L), and Lᵀ Σ L is the covariance of the features times L.
    """
    count = reference["num_images"].double()
    mean_r = reference["sum"].double() / count
    covariance = reference["sum_outer"].double() - count * torch.outer(mean_r, mean_r)
    values, vectors = torch.linalg.eigh(covariance / (count - 1))
    root = vectors * values.clamp(min=0).sqrt()
    trace_r, num = values.sum(), len(features)
    projected = features @ root

    def statistic(weights: Tensor) -> float:
        mean = weights @ features / num
        spread = ((weights @ features.square()) - num * mean.square()).sum() / (num - 1)
        centred = (projected - mean @ root) * (weights / (num - 1)).sqrt()[:, None]
        gram = centred @ centred.T if num < projected.shape[1] else centred.T @ centred
        shared = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
        return ((mean - mean_r).square().sum() + trace_r + spread - 2 * shared).item()

    return statistic


def kernel_distance(
    real: Float[Tensor, "m f"], features: Float[Tensor, "n f"], seed: int = 0
) -> Interval:
    """KID of two images or more on each side, with an interval over the samples.

    It is an unbiased estimate, so it and its interval may reach below 0, which the distance itself
    never is. Up to 1,000 images, all pairs count. More are cut into blocks, and KID is the mean
    over blocks. `seed` shuffles both sides first: a folder of real images is often sorted by class.
    """
    num_blocks = max(1, -(-max(len(real), len(features)) // _BLOCK))
    num_blocks = min(num_blocks, len(real) // 2, len(features) // 2)
    real, features = real.double(), features.double()
    if num_blocks > 1:
        generator = torch.Generator().manual_seed(seed)
        real, features = _shuffled(real, generator), _shuffled(features, generator)
    kernels = [
        (_kernel(a, a), _kernel(a, b), _kernel(b, b))
        for a, b in zip(
            real.tensor_split(num_blocks), features.tensor_split(num_blocks), strict=True
        )
    ]

    def statistic(weights: Tensor) -> float:
        parts = weights.tensor_split(num_blocks)
        return sum(_mmd(*k, w) for k, w in zip(kernels, parts, strict=True)) / num_blocks

    value = statistic(torch.ones(len(features), dtype=torch.float64))
    return bootstrap(value, statistic, len(features), seed)


def _shuffled(images: Float[Tensor, "n f"], generator: torch.Generator) -> Float[Tensor, "n f"]:
    return images[torch.randperm(len(images), generator=generator)]


def _kernel(a: Float[Tensor, "a f"], b: Float[Tensor, "b f"]) -> Float[Tensor, "a b"]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mmd(
    real: Float[Tensor, "m m"], cross: Float[Tensor, "m n"], fake: Float[Tensor, "n n"],
    weights: Float[Tensor, " n"],
) -> float:  # fmt: skip
    """The squared MMD if sample i counts `weights[i]` times; no image is paired with itself."""
    m, total = len(real), weights.sum()
    among_real = (real.sum() - real.trace()) / (m * (m - 1))
    squares = weights.square()
    num_pairs = (total.square() - squares.sum()).clamp(min=1)
    among_fake = (weights @ fake @ weights - squares @ fake.diagonal()) / num_pairs
    between = (cross @ weights).sum() / (m * total.clamp(min=1))
    return (among_real + among_fake - 2 * between).item()


def inception_score(logits: Float[Tensor, "n c"], seed: int = 0) -> Interval:
    """The Inception Score of images with these logits, with an interval over images."""
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


def precision(real: Float[Tensor, "m f"], samples: Float[Tensor, "n f"]) -> Bool[Tensor, " n"]:
    """Whether each sample is near the real images; the precision is the mean."""
    return _is_near(samples, real, _radii(real))


def recall(real: Float[Tensor, "m f"], samples: Float[Tensor, "n f"]) -> Bool[Tensor, " m"]:
    """Whether each real image is near the samples; the recall is the mean."""
    return _is_near(real, samples, _radii(samples))


def _radii(features: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
    """The distance of each image to its third nearest neighbour, or to the last if it has fewer."""
    k = min(_NUM_NEIGHBOURS, len(features) - 1)
    # The nearest of all is the image itself.
    return torch.cat(
        [_distances(rows, features).kthvalue(k + 1).values for rows in features.split(_ROWS)]
    )


def _is_near(
    points: Float[Tensor, "n f"], others: Float[Tensor, "m f"], radii: Float[Tensor, " m"]
) -> Bool[Tensor, " n"]:
    """Whether each point lies within the radius of one of the others."""
    return torch.cat([(_distances(rows, others) <= radii).any(1) for rows in points.split(_ROWS)])


def _distances(a: Float[Tensor, "a f"], b: Float[Tensor, "b f"]) -> Float[Tensor, "a b"]:
    return torch.cdist(a.double(), b.double())
