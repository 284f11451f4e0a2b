"""What can be had at once is had; what cannot is told with its reason; what is wrong is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

import pipeline_parts as parts
from ditprune.denoiser.placement import Placement
from ditprune.errors import ModelError, RecipeError
from ditprune.evaluation import extractors, tools
from ditprune.evaluation.catalogue import CATALOGUE
from ditprune.evaluation.protocol import Measures
from ditprune.evaluation.tools import prepare_tools
from folders import Payload

DIGITS = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
COLOUR = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
LABELS, PROMPTS = [0, 1], ["a cat", "a dog"]
FEATURES = ("fid", "sfid", "kid", "inception_score", "precision", "recall")


@pytest.fixture(autouse=True)
def _nothing_cached(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def test_digits_have_the_classifier() -> None:
    ready = prepare_tools(Measures(), DIGITS, LABELS, Placement())
    assert ready.chosen == tuple(CATALOGUE)
    assert ready.unavailable.keys() == {"lpips", "clip_score", "image_reward"}
    assert "class labels" in ready.unavailable["clip_score"]
    assert all(ready.has(name) for name in (*FEATURES, "accuracy"))
    assert ready.features_text.startswith("the bundled MNIST classifier's")


@pytest.mark.parametrize("named", [False, True])
def test_colours_have_no_extractor_here_and_say_why(named, monkeypatch) -> None:
    monkeypatch.setattr(extractors, "has_inception", lambda: False)
    names = (*FEATURES, "accuracy") if named else None
    ready = prepare_tools(Measures(names), COLOUR, LABELS, Placement())
    for name in FEATURES:
        assert ready.unavailable[name].startswith("InceptionV3 needs torch-fidelity: pip install")
    assert "grey digits only" in ready.unavailable["accuracy"]
    assert ready.features_text.startswith("not available: InceptionV3")
    assert ready.has("ssim") is not named


def test_a_choice_that_cannot_be_had_is_not_replaced(monkeypatch) -> None:
    monkeypatch.setattr(extractors, "has_inception", lambda: False)
    ready = prepare_tools(Measures(feature_extractor="inception"), DIGITS, LABELS, Placement())
    assert ready.unavailable["fid"].startswith("InceptionV3 needs")
    assert ready.extractor is None
    classifier = Measures(feature_extractor="classifier")
    ready = prepare_tools(classifier, COLOUR, LABELS, Placement())
    assert ready.unavailable["fid"] == "the bundled classifier reads 32×32 grey digits only"


def test_weights_are_fetched_where_they_are_asked_for_and_only_there(monkeypatch) -> None:
    asked: list[str] = []

    def no_network(address: str, *_args: object, **_words: object) -> None:
        asked.append(address)
        raise OSError("no route to host")

    monkeypatch.setattr(extractors, "has_inception", lambda: True)
    monkeypatch.setattr(extractors, "inception_address", lambda: "https://host/w-00ff.pth")
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    ready = prepare_tools(Measures(), COLOUR, LABELS, Placement())
    assert (asked, "fetches them" in ready.unavailable["fid"]) == ([], True)
    for measures in (Measures(("fid",)), Measures(feature_extractor="inception")):
        ready = prepare_tools(measures, COLOUR, LABELS, Placement())
        assert "could not be fetched (no route to host)" in ready.unavailable["fid"]
    assert asked == ["https://host/w-00ff.pth"] * 2


def test_prompts_are_compared_by_a_clip_of_ones_own(tmp_path) -> None:
    clip = parts.save_clip(tmp_path / "clip")
    ready = prepare_tools(Measures(clip=str(clip)), COLOUR, PROMPTS, Placement())
    assert ready.has("clip_score")
    assert ready.networks["clip_score"](COLOUR, PROMPTS).shape == (2,)
    gone = prepare_tools(Measures(clip=str(tmp_path / "no")), COLOUR, PROMPTS, Placement())
    assert gone.unavailable["clip_score"].startswith(f"{tmp_path / 'no'} is not here")
    named = prepare_tools(
        Measures(("clip_score",), clip=str(tmp_path / "no")), COLOUR, PROMPTS, Placement()
    )
    assert named.chosen == ("clip_score",)
    assert named.unavailable["clip_score"].startswith("could not be loaded (")


def test_what_is_not_installed_is_told(monkeypatch) -> None:
    monkeypatch.setattr(tools, "find_spec", lambda _name: None)
    ready = prepare_tools(Measures(("lpips", "image_reward")), COLOUR, PROMPTS, Placement())
    assert "pip install image-reward" in ready.unavailable["image_reward"]
    assert ready.unavailable["lpips"].startswith("LPIPS needs torchvision")
    assert ready.features_text == "not available: no metric of features was chosen"


def test_lpips_needs_large_images_and_its_weights(monkeypatch) -> None:
    monkeypatch.setattr(tools, "find_spec", lambda _name: True)
    small = prepare_tools(Measures(("lpips",)), COLOUR[..., :16], LABELS, Placement())
    assert "smaller than the 32 pixels" in small.unavailable["lpips"]
    ready = prepare_tools(Measures(), DIGITS, LABELS, Placement())
    assert "fetches them" in ready.unavailable["lpips"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"names": ("fidd",)}, "metrics fidd: did you mean"),
        ({"feature_extractor": "clip"}, "feature_extractor clip: no such file"),
        ({"reference": Path("nowhere")}, "reference nowhere: no such folder"),
    ],
    ids=str,
)
def test_words_that_mean_nothing_are_refused(words, match) -> None:
    with pytest.raises(RecipeError, match=match):
        Measures(**words)


def test_metrics_keep_the_order_of_the_catalogue() -> None:
    assert Measures(("accuracy", "ssim", "fid")).chosen == ("ssim", "fid", "accuracy")


def test_weights_of_a_file_run_no_code(tmp_path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "w.pth"
    with file.open("wb") as stream:
        pickle.dump({"fc.weight": Payload(mark)}, stream, protocol=2)
    with pytest.raises(ModelError, match=r"w\.pth: cannot be read as weights alone"):
        extractors._read_weights(file)
    torch.save({"x": Payload(mark)}, file)
    with pytest.raises(ModelError, match="code in files is never run"):
        extractors._read_weights(file)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file_are_read(suffix, tmp_path) -> None:
    from safetensors.torch import save_file

    file, weights = tmp_path / f"w{suffix}", {"fc.weight": torch.ones(2, 3)}
    torch.save(weights, file) if suffix == ".pth" else save_file(weights, file)
    assert torch.equal(extractors._read_weights(file)["fc.weight"], weights["fc.weight"])
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds a list, expected named tensors"):
        extractors._read_weights(tmp_path / "list.pth")
