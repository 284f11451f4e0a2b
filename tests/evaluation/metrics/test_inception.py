"""InceptionV3 for FID: safe weights, and the features that the literature means.

The weights are drawn at random: the real ones are fetched, which no test does.
"""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ditprune.evaluation.extractors import (
    has_inception,
    inception_address,
    load_inception,
)

if not has_inception():
    pytest.skip("needs torch-fidelity and torchvision", allow_module_level=True)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights of InceptionV3's names and shapes."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    network = module.FeatureExtractorInceptionV3.__new__(module.FeatureExtractorInceptionV3)
    kept: dict[str, Tensor] = {}

    def keep(self: torch.nn.Module, _state: object) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, own in self.state_dict().items():
            if own.ndim > 1:
                scale = (2 / own[0].numel()) ** 0.5
                kept[name] = scale * torch.randn(own.shape, generator=generator)
            else:
                kept[name] = own.clone()
        raise StopIteration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_a, **_k: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", keep)
        with pytest.raises(StopIteration):
            network.__init__("x", ["2048"], feature_extractor_weights_path="x")
    return kept


def images(num_colours: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, num_colours, 32, 40), generator=generator, dtype=torch.uint8)


def test_the_features_are_those_of_the_network(weights) -> None:
    see = load_inception(weights)
    seen = see(images(3))
    assert seen.pooled.shape == (2, 2048)
    assert seen.spatial.shape == (2, 7 * 17 * 17) == (2, 2023)
    assert seen.logits.shape == (2, 1008)
    # Without the bias, as the Inception Score of the literature.
    expected = seen.pooled @ weights["fc.weight"].T
    torch.testing.assert_close(seen.logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(see(images(3)).pooled, seen.pooled, rtol=0, atol=0)


def test_the_spatial_features_are_the_first_channels_of_the_map(weights) -> None:
    """Computed again block by block, as the network's forward has them."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    network = module.FeatureExtractorInceptionV3(
        "x", ["768"], feature_extractor_weights_path=buffer
    )
    resized = module.interpolate_bilinear_2d_like_tensorflow1x(
        images(3).float(), size=(299, 299), align_corners=False
    )
    x = (resized - 128) / 128
    with torch.no_grad():
        for name in (
            "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1",
            "Conv2d_4a_3x3", "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a",
            "Mixed_6b", "Mixed_6c",
        ):  # fmt: skip
            x = network.get_submodule(name)(x)
        branch = network.Mixed_6d.branch1x1
        map_ = functional.relu(branch.bn(branch.conv(x)))
    spatial = load_inception(weights)(images(3)).spatial.reshape(2, 7, 17, 17)
    torch.testing.assert_close(spatial, map_[:, :7], rtol=1e-4, atol=1e-5)


def test_grey_images_are_seen_as_grey_colours(weights) -> None:
    see = load_inception(weights)
    grey = images(1)
    torch.testing.assert_close(see(grey).pooled, see(grey.repeat(1, 3, 1, 1)).pooled)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        load_inception({"fc.weight": torch.zeros(2, 2)})


def test_the_address_names_the_weights() -> None:
    assert inception_address().startswith("https://")
    assert inception_address().endswith("-6726825d.pth")
