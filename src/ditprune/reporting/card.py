"""What stands in README.md, the model card of a pruned folder?

It says what the manifests and an evaluation say. The card of the base model stays beside it as
README.base.md, and its front matter about licence and use is kept. Text that someone adds below
`END` is kept when the card is written again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditprune.checkpoints.shrunk.form import form_in
from ditprune.checkpoints.shrunk.record import is_record
from ditprune.errors import ModelError
from ditprune.reporting import formats
from ditprune.reporting.commands import repeat_commands
from ditprune.reporting.formats import fill
from ditprune.reporting.front_matter import read_front_matter, write_front_matter
from ditprune.reporting.told import facts_of, measured_error
from ditprune.writing.files import (
    CARD,
    CARD_PICTURE,
    MANIFEST,
    is_compact,
    read_manifest,
    write_beside,
)
from ditprune.writing.json_file import MALFORMED, read_json

BASE_CARD = "README.base{}.md"
BEGIN = "<!-- this card is written by ditprune -->"
END = "<!-- what stands below is kept when the card is written again -->"
_QUALITY = re.compile(r"^## Quality\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
_TAGS = ("diffusers", "ditprune", "pruning", "sparsity")
# Keys of the base model's front matter that are not true of its pruned copy.
_NOT_KEPT = {"base_model", "base_model_relation", "library_name", "model-index", "tags", "widget"}
# The picture of samples: pixels of a sample and of the gap between two, and how many samples.
_TILE, _GAP, _MOST_COLUMNS = 128, 4, 8


def write(
    folder: Path, results: Mapping[str, Any] | None = None, name: str | None = None,
    base_model: str | None = None, keeps_measured: bool = False,
) -> bool:  # fmt: skip
    """Write the card of a folder that `prune` made; do nothing in another folder.

    Args:
        results: what `ditprune evaluate` found; None if nothing is measured.
        name: the name of the model in these results; by default the folder's name.
        base_model: the dense model's hub id, if it is known.
        keeps_measured: keep what the card says was measured, as the weights are the same.

    Returns:
        Whether a card was written. None is written without a manifest, or through a link, as in
        the hub's cache.

    Raises:
        ModelError: a manifest cannot be read.
        OutputError: the disk refuses.
    """
    claims, card = _manifests(folder), folder / CARD
    if not claims or card.is_symlink():
        return False
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front, is_ours = read_front_matter(text), BEGIN in text
    if text and not is_ours:
        _keep_base(folder)
    if is_ours and base_model is None:
        base_model = _text(front.get("base_model"))
    model = _model_in(results, folder.resolve().name if name is None else name)
    has_picture = bool(model) and _write_picture(results, model["name"], folder / CARD_PICTURE)
    stays = _measured_before(text) if keeps_measured else ""
    if not has_picture and not stays:
        (folder / CARD_PICTURE).unlink(missing_ok=True)
    try:
        body = _body(folder, claims, base_model, has_picture, _measured(results, model))
    except MALFORMED as error:
        raise ModelError(
            f"{folder}: its {MANIFEST} cannot be read ({error!r}); run `ditprune verify`"
        ) from None
    if stays:
        body = body.replace(_measured_before(body), stays)
    tail = text.partition(f"{END}\n")[2] if is_ours else ""
    with write_beside(card) as part:
        part.write_text(
            f"{_front_matter(front, base_model)}{body}\n{END}\n{tail}", encoding="utf-8"
        )
    return True


def write_converted(folder: Path) -> None:
    """Write the card anew where weights were packed or unpacked, if it is ours."""
    card = folder / CARD
    if card.is_file() and BEGIN in card.read_text(encoding="utf-8", errors="replace"):
        write(folder, keeps_measured=True)


def _measured_before(text: str) -> str:
    """The part of a card of ours that says what was measured; empty if there is none."""
    match = _QUALITY.search(text.partition(BEGIN)[2])
    return match[0] if match else ""


def _manifests(folder: Path) -> dict[str, Any]:
    """The manifests by the subfolder of their denoiser; `.` is the folder itself."""
    files = (folder / MANIFEST, *sorted(folder.glob(f"*/{MANIFEST}")))
    return {
        file.parent.relative_to(folder).as_posix(): read_manifest(file.parent)
        for file in files
        if file.is_file()
    }


def _keep_base(folder: Path) -> None:
    """Move the base model's card to a free name, or to the one that a killed run gave it."""
    card, number = (folder / CARD).read_bytes(), 1
    while True:
        file = folder / BASE_CARD.format("" if number == 1 else f".{number}")
        if not file.exists():
            with write_beside(file) as part:
                part.write_bytes(card)
            return
        if file.is_file() and file.read_bytes() == card:
            return
        number += 1


def _text(value: object) -> str | None:
    """The value if it is a line of text: others edit our cards too."""
    return value if isinstance(value, str) and value.isprintable() else None


def _front_matter(before: Mapping[str, Any], base_model: str | None) -> str:
    given = before.get("tags")
    tags = [tag for tag in (given if isinstance(given, list) else [given]) if _text(tag)]
    data = {key: value for key, value in before.items() if key not in _NOT_KEPT}
    data |= {"library_name": "diffusers", "tags": list(dict.fromkeys([*tags, *_TAGS]))}
    if base_model is not None:
        data["base_model"] = base_model
    return write_front_matter(data)


def _model_in(results: Mapping[str, Any] | None, name: str) -> Any:
    """The pruned model of this name in results; None if it is not there."""
    models = [] if results is None else results["models"][1:]
    return next((model for model in models if model["name"] == name), None)


def _measured(results: Any, model: Any) -> dict[str, Any]:
    """What the template shows of an evaluation; `model` is None if there is none."""
    if model is None:
        return {"model": None}
    from ditprune.reporting.costs import cost_text
    from ditprune.reporting.notes import metric_notes, unavailable_notes
    from ditprune.reporting.verdict import verdicts_of

    dense, metrics = results["models"][0], results["metrics"]
    return {
        "model": model,
        "dense": dense,
        "metrics": {key: metric for key, metric in metrics.items() if not metric["unavailable"]},
        "unavailable": unavailable_notes(metrics),
        "notes": metric_notes(metrics, [dense, model]),
        "verdict": verdicts_of(results)[model["name"]],
        "costs": cost_text(model, dense, results.get("bench")),
        "protocol": results["protocol"],
    }


def _body(
    folder: Path, claims: Mapping[str, Any], base_model: str | None, has_picture: bool,
    measured: Mapping[str, Any],
) -> str:  # fmt: skip
    from jinja2 import UndefinedError

    first = next(iter(claims.values()))
    folders = [folder / subfolder for subfolder in claims]
    small, free = any(map(is_compact, folders)), any(map(_has_form, folders))
    imports = "import ditprune  # reads the compact weights\n" if small else ""
    imports = imports or ("import ditprune  # knows the smaller layers\n" if free else "")
    shrunk = is_record(first)
    more = {} if shrunk else _how_pruned(claims, base_model)
    try:
        return fill(
            "shrunk_card.md.j2" if shrunk else "card.md.j2",
            told={place: facts_of(claim) for place, claim in claims.items()},
            BEGIN=BEGIN,
            made="shrunk" if shrunk else "pruned",
            claims=claims,
            first=first,
            base=base_model or first["base"]["model"],
            base_model=base_model,
            is_compact=small,
            is_free=free,
            imports=imports,
            is_pipeline=(folder / "model_index.json").is_file(),
            base_cards=sorted(file.name for file in folder.glob(BASE_CARD.format("*"))),
            picture=CARD_PICTURE if has_picture else None,
            json=lambda value: json.dumps(_cut(value), indent=1, ensure_ascii=False),
            **more,
            **measured,
        )
    except UndefinedError as error:  # the template names what the manifest lacks
        raise ValueError(str(error)) from None


def _how_pruned(claims: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    """What the template shows of pruned denoisers alone."""
    first = next(iter(claims.values()))
    totals = [claim["totals"] for claim in claims.values()]
    recipes = {place: claim["recipe"] for place, claim in claims.items()}
    if all(recipe == first["recipe"] for recipe in recipes.values()):
        recipes = {}
    lines = repeat_commands(base_model or "DENSE", "OUT", first, recipes)
    return {
        "measured_error": measured_error,
        "recipes": recipes,
        "share": sum(t["num_pruned"] for t in totals) / sum(t["num_weights"] for t in totals),
        "commands": "\n".join(line for line in lines if line is not None),
    }


def _has_form(folder: Path) -> bool:
    """Whether a denoiser loads only where ditprune is imported, as it is shrunk."""
    file = folder / "config.json"
    return file.is_file() and form_in(read_json(file), str(file)) is not None


def _cut(value: Any) -> Any:
    """The same with long lists cut, such as prompts; the manifest has them in full."""
    if isinstance(value, Mapping):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > formats.MOST_LISTED:
        return [*value[: formats.MOST_LISTED], f"… ({len(value)} in all)"]
    return value


def _write_picture(results: Any, name: str, file: Path) -> bool:
    """Write a PNG of same-seed samples, one in each column, the least alike first.

    The dense model's image is above, that of the model `name` below. Returns whether there is a
    sample to show. Raises OutputError.
    """
    from PIL import Image

    dense = results["models"][0]["name"]
    samples = [s for s in results["gallery"] if {dense, name} <= s["images"].keys()]
    samples.sort(key=lambda sample: sample["ssim"].get(name) or 0)
    if not samples:
        return False
    columns, step = samples[:_MOST_COLUMNS], _TILE + _GAP
    sheet = Image.new("RGB", (len(columns) * step - _GAP, 2 * step - _GAP), "white")
    for column, sample in enumerate(columns):
        for row, model in enumerate((dense, name)):
            sheet.paste(_tile(sample["images"][model]), (column * step, row * step))
    with write_beside(file) as part:
        sheet.save(part, format="PNG")
    return True


def _tile(uri: str) -> Any:
    """The image of a data URI, fitted into a square; small images keep sharp pixels."""
    import base64
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    scale = _TILE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    tile.paste(image.resize((width, height), resample), ((_TILE - width) // 2, 0))
    return tile
