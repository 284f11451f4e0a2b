"""The card of a pruned folder: what it says, whom it leaves alone, what it keeps."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from ditprune.calibration.sample import Sampling
from ditprune.checkpoints.copy_folder import stamp
from ditprune.checkpoints.locate import locate
from ditprune.checkpoints.weights import Weights
from ditprune.errors import ModelError
from ditprune.method.words import build
from ditprune.pruning.convert import to_compact
from ditprune.pruning.loop import prune_checkpoint
from ditprune.pruning.verify import false_claims
from ditprune.reporting import card
from ditprune.reporting.formats import fenced, words
from folders import edit_json, files_of
from invented_results import results

BASE = """---
license: apache-2.0
pipeline_tag: text-to-image
tags: [mnist]
base_model: someone/older
widget: [{text: a}]
extra_gated_prompt: agree
---
# The dense one
A card with its own words.
"""


@pytest.fixture(scope="module")
def made(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned copy of a model that carries a card."""
    place = tmp_path_factory.mktemp("card")
    dense = Path(shutil.copytree(tiny_pipeline, place / "dense"))
    (dense / "README.md").write_text(BASE, encoding="utf-8")
    prune_checkpoint(
        locate(str(dense)), place / "stw 50", None, build(saliency="magnitude", sparsity=0.5)
    )
    return place / "stw 50"


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "stw 50"))


def front(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_prune_writes_it_and_verify_is_content(made: Path) -> None:
    assert list(false_claims(locate(str(made)))) == []
    text = text_of(made)
    assert "# dense, 50 % of the block weights removed" in text
    assert "Not measured yet" in text
    assert 'DiffusionPipeline.from_pretrained("this folder' in text
    assert "| transformer |" in text
    assert "ditprune prune DENSE -o OUT --recipe ditprune.json" in text
    assert '"saliency": {"name": "magnitude"}' in " ".join(text.split()).replace("{ ", "{").replace(
        " }", "}"
    )


def test_the_front_matter_is_what_the_hub_reads(made: Path) -> None:
    from huggingface_hub import ModelCard

    expected = {
        "extra_gated_prompt": "agree", "library_name": "diffusers", "license": "apache-2.0",
        "pipeline_tag": "text-to-image",
        "tags": ["mnist", "diffusers", "ditprune", "pruning", "sparsity"],
    }  # fmt: skip
    assert front(made) == expected
    assert ModelCard(text_of(made)).data.to_dict() == expected


def test_the_card_of_the_base_model_stays(made: Path, own: Path) -> None:
    assert (made / "README.base.md").read_text(encoding="utf-8") == BASE
    assert "[README.base.md](README.base.md)" in text_of(made)
    card.write(own, results())
    assert (own / "README.base.md").read_text(encoding="utf-8") == BASE


def test_an_evaluation_puts_its_numbers_and_a_picture_in(own: Path) -> None:
    before = text_of(own)
    assert card.write(own, results())
    text = text_of(own)
    assert "**not told apart from dense by 1,000 images: intervals overlap for FID" in text
    assert "50 % of the target weights removed; 11.2 MB, the dense model's size; no time" in text
    assert "| 1,000 same-seed images | dense | pruned |" in text
    assert "| FID, lower is better | 0.083 \\[0.070, 0.100\\] | 0.072 \\[0.060, 0.088\\] |" in text
    assert "- Not measured: CLIP score, no CLIP weights" in text
    assert "- Mind: FID of stw 50 is below dense" in text
    assert "Num inference steps: 25." in text
    assert "(ditprune.png)" in text
    with Image.open(own / "ditprune.png") as picture:
        assert picture.size == (5 * 132 - 4, 260)
        assert picture.getpixel((60, 60)) == (255, 255, 255)
        assert picture.getpixel((60, 200)) == (10, 10, 10)
    assert list(false_claims(locate(str(own)))) == []
    assert card.write(own)  # and without them it is as it was
    assert text_of(own) == before
    assert not (own / "ditprune.png").exists()


def test_a_new_card_is_no_new_model(own: Path) -> None:
    """Images that are kept and runs that go on are of the model, whatever is told of it."""
    model = locate(str(own))
    weights = {name: Weights(folder) for name, folder in model.denoisers.items()}
    before = stamp(model, weights)
    card.write(own, results())
    assert stamp(model, weights) == before
    (own / "vae" / "note.txt").touch()
    assert stamp(model, weights) != before


def test_results_of_other_models_say_nothing_of_this_one(own: Path) -> None:
    before = files_of(own)
    assert card.write(own, results(), "another")
    assert files_of(own) == before


def test_the_base_model_is_named_where_it_is_known_and_stays_so(own: Path) -> None:
    card.write(own, base_model="facebook/DiT-XL-2-256")
    for _ in range(2):
        assert front(own)["base_model"] == "facebook/DiT-XL-2-256"
        assert "https://huggingface.co/facebook/DiT-XL-2-256" in text_of(own)
        assert "ditprune prune facebook/DiT-XL-2-256 -o OUT" in text_of(own)
        card.write(own, results())


def test_what_someone_adds_is_kept(own: Path) -> None:
    edited = text_of(own).replace("license: apache-2.0", "license: mit") + "\n## My own words\n"
    (own / "README.md").write_text(edited, encoding="utf-8")
    card.write(own, results())
    assert text_of(own).endswith("\n## My own words\n")
    assert front(own)["license"] == "mit"


def test_a_folder_that_is_not_ours_is_left_alone(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "stw 50"))
    before = files_of(folder)
    assert not card.write(folder, results())
    assert files_of(folder) == before


def test_a_link_is_left_alone(own: Path, tmp_path: Path) -> None:
    """As in the hub's cache, where the file behind it is kept by its hash."""
    (own / "README.md").rename(tmp_path / "blob")
    (own / "README.md").symlink_to(tmp_path / "blob")
    before = files_of(tmp_path)
    assert not card.write(own, results())
    assert files_of(tmp_path) == before


def test_a_base_card_of_that_name_is_not_lost(own: Path) -> None:
    (own / "README.base.md").write_text("the base's own", encoding="utf-8")
    (own / "README.md").write_text(BASE, encoding="utf-8")
    for _ in range(2):  # the second time as a run that goes on after a kill
        card.write(own)
        assert (own / "README.base.md").read_text(encoding="utf-8") == "the base's own"
        assert (own / "README.base.2.md").read_text(encoding="utf-8") == BASE
        assert not (own / "README.base.3.md").exists()
        (own / "README.md").write_text(BASE, encoding="utf-8")


@pytest.mark.parametrize("text", ["---\nlicense: [\n---\n# a", "---\n- 1\n---\n", "\ufeffno", "--"])
def test_front_matter_that_is_none_is_kept_as_it_was(text: str, own: Path) -> None:
    (own / "README.base.md").unlink()
    (own / "README.md").write_text(text, encoding="utf-8")
    card.write(own)
    assert (own / "README.base.md").read_text(encoding="utf-8") == text
    assert front(own)["library_name"] == "diffusers"


def test_words_are_words_in_markdown() -> None:
    assert words("a|b\n<script>`x` *y* [z](u)\x00") == (
        "a\\|b &lt;script&gt;\\`x\\` \\*y\\* \\[z\\](u)"
    )
    assert fenced("a\n```\nb", "json") == "````json\na\n```\nb\n````"


def test_long_lists_are_cut(own: Path) -> None:
    protocol = {"prompts": [f"prompt {number}" for number in range(300)]}
    edit_json(
        own / "transformer" / "ditprune.json",
        lambda claims: claims.update(statistics={"num_calls": 5, "protocol": protocol}),
    )
    card.write(own)
    assert '"… (300 in all)"' in text_of(own)
    assert "prompt 9" not in text_of(own)


@pytest.mark.parametrize("path", ["totals", "versions", "totals.model_sparsity", "recipe", "base"])
def test_a_manifest_that_cannot_be_read_is_named(path: str, own: Path) -> None:
    def spoil(claims: dict[str, Any]) -> None:
        *before, last = path.split(".")
        for key in before:
            claims = claims[key]
        del claims[last]

    edit_json(own / "transformer" / "ditprune.json", spoil)
    before = files_of(own)
    with pytest.raises(ModelError, match="ditprune verify"):
        card.write(own)
    assert files_of(own) == before


def how(folder: Path) -> str:
    return text_of(folder).split("## How it was made\n")[1].split("`ditprune.json`")[0]


@pytest.mark.parametrize("words", [{"preset": "best"}, {"allocation": "proxy"}], ids=str)
def test_a_recipe_that_needs_calls_names_them(words: dict[str, Any], own: Path) -> None:
    recipe = build(**words).to_json()
    protocol = Sampling(num_samples=64).protocol("DiTPipeline", "DDIMScheduler")
    edit_json(
        own / "transformer" / "ditprune.json",
        lambda claims: claims.update(
            recipe=recipe, statistics={"num_calls": 5, "protocol": protocol}
        ),
    )
    card.write(own)
    assert how(own) == (
        "```\nditprune calibrate DENSE -o stats.safetensors --calibration-set calls "
        "--num-samples 64\n"
        "ditprune prune DENSE -o OUT --statistics stats.safetensors --calibration-set calls "
        "--recipe ditprune.json\n```\n"
    )


def test_a_recipe_of_other_choices_has_no_command(own: Path) -> None:
    edit_json(
        own / "transformer" / "ditprune.json",
        lambda claims: claims["recipe"].update(saliency="mine"),
    )
    card.write(own)
    assert how(own).startswith("No command makes it again")
    assert "ditprune prune DENSE" not in text_of(own)


def test_a_compact_model_says_what_loads_it(own: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    to_compact(locate(str(own)), small)
    assert "stock diffusers" not in text_of(small)
    assert card.write(small, results(), "stw 50")
    assert "```python\nimport ditprune  # reads the compact weights\nfrom diffusers" in text_of(
        small
    )
    assert "stock diffusers" not in text_of(small)
    assert "stock diffusers" in text_of(own)
    assert "import ditprune" not in text_of(own)


def test_a_bare_denoiser_has_one_too(tiny_dit: Any, tmp_path: Path) -> None:
    tiny_dit().save_pretrained(tmp_path / "dense")
    prune_checkpoint(
        locate(str(tmp_path / "dense")), tmp_path / "out", None, build(saliency="magnitude")
    )
    assert "AutoModel.from_pretrained" in text_of(tmp_path / "out")
    assert "| the model |" in text_of(tmp_path / "out")


ODD = {
    "an impossible date": "date: 2024-02-30",
    "a timestamp that is none": "a: !!timestamp x",
    "an integer that is none": "a: !!int x",
    "a float that is none": "a: !!float x",
    "bytes that are none": "a: !!binary é",
    "an integer without digits": "a: 0b_",
    "an integer of 5000 digits": "a: " + "9" * 5000,
    "a tag that is an object": "tags:\n- {a: b}\n- good",
    "a tag that is a list": "tags:\n- [a]\n- good",
    "tags that are an object": "tags: {a: b}",
    "tags of other kinds": "tags: [1, null, true, 2024-01-01, good]",
    "a key that is a list": "? [a, b]\n: c",
    "a key that is an object": "? {a: b}\n: c",
    "keys of several kinds": "1: a\nb: c\nnull: d\n2024-01-01: e",
    "lists without end": "a: " + "[" * 3000,
    "lists 3000 deep": "a: " + "[" * 3000 + "]" * 3000,
    "objects 50 deep": "a: " + "{a: " * 50 + "b" + "}" * 50,
    "an object of Python": "a: !!python/object/apply:os.system [echo]",
    "an unknown tag": "a: !mine x",
    "an unknown tag of a list": "a: !mine [x]",
    "itself": "a: &a [*a]",
    "aliases that multiply": "a0: &a0 {x: y}\n" + "\n".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 30)
    ),
    "a set": "a: !!set {b, c}",
    "pairs that are none": "a: !!omap [b]",
    "half a character": r'a: "\ud800"',
    "a control character": r'a: "\x1b[2J"',
    "a base model that is a list": "base_model: [a/b, c/d]",
    "a base model that is an object": "base_model: {a: b}",
    "Inf and NaN": "a: [.inf, .nan]",
    "no end": "license: mit\na: 'b",
    "two documents": "a: b\n...\n--- c",
    "the tab": "a:\n\t- b",
    "a megabyte": "a: " + "b" * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("is_ours", [False, True])
def test_no_front_matter_ends_a_run(name: str, is_ours: bool, own: Path) -> None:
    file = own / "README.md"
    body = file.read_text(encoding="utf-8").split("---\n", 2)[2] if is_ours else "text\n"
    file.write_text(f"---\nlicense: mit\n{ODD[name]}\n---\n{body}", encoding="utf-8")
    assert card.write(own)
    written = front(own)
    assert {"diffusers", "ditprune"} <= set(written["tags"])
    assert written["library_name"] == "diffusers"
    assert all(isinstance(tag, str) for tag in written["tags"])
    assert isinstance(written.get("base_model", ""), str)
    if "good" in ODD[name]:
        assert written["tags"][0] == "good"
    if name.startswith(("an i", "a t", "a f", "a b", "bytes", "tag")):
        assert written["license"] == "mit"  # what is beside it stays


def test_names_that_are_not_utf_8_are_written_out(own: Path) -> None:
    edit_json(
        own / "transformer" / "ditprune.json",
        lambda claims: claims["base"].update(model=os.fsdecode(b"caf\xe9")),
    )
    assert card.write(own)
    assert "# caf" in text_of(own)


def a_broken_manifest(own: Path) -> None:
    (own / "transformer" / "ditprune.json").write_text("{", encoding="utf-8")


def a_place_for_no_file(own: Path) -> None:
    """As on a disk that may only be read; that holds for root too."""
    (own / "README.md").unlink(missing_ok=True)
    (own / "README.md").mkdir()


@pytest.mark.parametrize("spoil", [a_broken_manifest, a_place_for_no_file])
def test_a_card_that_cannot_be_written_is_a_warning(
    spoil, own: Path, tmp_path: Path, capsys
) -> None:
    """After an evaluation, whose results are on disk."""
    from ditprune.cli.evaluate import write_cards

    other = shutil.copytree(own, tmp_path / "other")
    spoil(own)
    write_cards([("stw 50", locate(str(own))), ("other", locate(str(other)))], results())
    said = capsys.readouterr().err
    assert said.startswith("warning: the card of stw 50 stays as it was: ")
    assert len(said.splitlines()) == 1
