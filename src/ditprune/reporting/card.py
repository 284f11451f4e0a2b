"""The model card: README.md of a pruned folder, with what its manifests and an evaluation say.

The card that the base model carried stays beside it as README.base.md, and what its front matter
says of licence and use is kept. What someone writes below `END` is kept when the card is rewritten.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditprune.checkpoints import manifest
from ditprune.errors import ModelError
from ditprune.reporting import numbers
from ditprune.reporting.commands import commands
from ditprune.reporting.picture import write_samples
from ditprune.reporting.verdict import judge
from ditprune.writing.output import CARD_PICTURE, MANIFEST, is_compact, write_beside

CARD, BASE_CARD = "README.md", "README.base{}.md"
BEGIN = "<!-- this card is written by ditprune -->"
END = "<!-- what stands below is kept when the card is written again -->"
TEMPLATES = Path(__file__).parent / "templates"
_TAGS = ("diffusers", "ditprune", "pruning", "sparsity")
# Of the base model's front matter, what is not true of its pruned copy.
_NOT_KEPT = {"base_model", "base_model_relation", "library_name", "model-index", "tags", "widget"}
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class _Known:
    """What a folder's README.md said before.

    Args:
        data: its front matter.
        is_ours: whether we wrote it.
        tail: what someone wrote below it.
    """

    data: Mapping[str, Any]
    is_ours: bool
    tail: str


def write(
    folder: Path, results: Mapping[str, Any] | None = None, name: str | None = None,
    base_model: str | None = None,
) -> bool:  # fmt: skip
    """Write the card of a folder that `prune` made; nothing elsewhere.

    Args:
        results: of `ditprune evaluate`; None where nothing is measured.
        name: what the model is called in them; by default as the folder.
        base_model: the dense model's hub id, where known.

    Returns:
        Whether a card was written: not without a manifest, and not through a link, as in the
        hub's cache.

    Raises:
        ModelError: a manifest cannot be read.
        OutputError: the disk refuses.
    """
    claims, card = _manifests(folder), folder / CARD
    if not claims or card.is_symlink():
        return False
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    known = _known(text)
    if text and not known.is_ours:
        _keep_base(folder, text)
    if known.is_ours and base_model is None:
        base_model = known.data.get("base_model")
    own = _own(results, folder.resolve().name if name is None else name)
    has_picture = own is not None and write_samples(own[0], own[1]["name"], folder / CARD_PICTURE)
    if not has_picture:
        (folder / CARD_PICTURE).unlink(missing_ok=True)
    try:
        body = _body(folder, claims, own, base_model, has_picture)
    except _MALFORMED as error:
        raise ModelError(
            f"{folder}: its {MANIFEST} cannot be read ({error!r}); run `ditprune verify`"
        ) from None
    with write_beside(card) as part:
        part.write_text(
            f"{_front_matter(known, base_model)}{body}\n{END}\n{known.tail}", encoding="utf-8"
        )
    return True


def _manifests(folder: Path) -> dict[str, Any]:
    """The manifests by the place of their denoiser; `.` for the folder itself."""
    places = (folder / MANIFEST, *sorted(folder.glob(f"*/{MANIFEST}")))
    return {
        place.parent.relative_to(folder).as_posix(): manifest.read(place.parent)
        for place in places
        if place.is_file()
    }


def _known(text: str) -> _Known:
    """From a README.md; front matter that is no YAML counts as none, and stays in the base card."""
    import yaml

    found = _FRONT.match(text)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        data = {}
    _, end, tail = text.partition(f"{END}\n")
    is_ours = BEGIN in text
    return _Known(data if isinstance(data, dict) else {}, is_ours, tail if end and is_ours else "")


def _keep_base(folder: Path, text: str) -> None:
    """Put the base model's card where no other file is lost, and where a killed run put it."""
    number = 1
    while True:
        file = folder / BASE_CARD.format("" if number == 1 else f".{number}")
        if not file.exists():
            with write_beside(file) as part:
                part.write_bytes((folder / CARD).read_bytes())
            return
        if file.is_file() and file.read_bytes() == (folder / CARD).read_bytes():
            return
        number += 1


def _front_matter(known: _Known, base_model: str | None) -> str:
    import yaml

    before = known.data.get("tags")
    tags = before if isinstance(before, list) else [before] if isinstance(before, str) else []
    data = {key: value for key, value in known.data.items() if key not in _NOT_KEPT}
    data |= {"library_name": "diffusers", "tags": list(dict.fromkeys([*tags, *_TAGS]))}
    if base_model is not None:
        data["base_model"] = base_model
    return f"---\n{yaml.safe_dump(data, allow_unicode=True, sort_keys=True)}---\n"


def _own(
    results: Mapping[str, Any] | None, name: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The results, and this model's part of them; None where it has none."""
    models = [] if results is None else results["models"][1:]
    (own, *_) = [one for one in models if one["name"] == name] or [None]
    return None if own is None or results is None else (results, own)


def _body(
    folder: Path, claims: Mapping[str, Any], own: Any, base_model: str | None, has_picture: bool
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    environment.filters.update(words=words, fenced=fenced)
    first = next(iter(claims.values()))
    totals = [one["totals"] for one in claims.values()]
    small = any(is_compact(folder / place) for place in claims)
    share = sum(t["num_pruned"] for t in totals) / sum(t["num_weights"] for t in totals)
    made = commands(base_model or "DENSE", "OUT", first, by_file=True)
    try:
        return environment.get_template("card.md.j2").render(
            BEGIN=BEGIN,
            claims=claims,
            first=first,
            share=share,
            base=base_model or first["base"]["model"],
            base_model=base_model,
            commands="\n".join(one for one in made if one is not None),
            is_compact=small,
            imports="import ditprune  # reads the compact weights\n" if small else "",
            is_pipeline=(folder / "model_index.json").is_file(),
            base_cards=sorted(file.name for file in folder.glob(BASE_CARD.format("*"))),
            picture=CARD_PICTURE if has_picture else None,
            n=numbers,
            json=lambda value: json.dumps(_cut(value), indent=1, ensure_ascii=False),
            **_measured(own),
        )
    except UndefinedError as error:  # what the template names and the manifest lacks
        raise ValueError(str(error)) from None


def _measured(own: Any) -> dict[str, Any]:
    """What the template says of an evaluation; nothing of it where there is none."""
    if own is None:
        return {"model": None}
    results, model = own
    dense, metrics = results["models"][0], results["metrics"]
    return {
        "model": model,
        "dense": dense,
        "metrics": {key: one for key, one in metrics.items() if not one["unavailable"]},
        "unavailable": [one for one in metrics.values() if one["unavailable"]],
        "verdict": judge(model, dense, metrics),
        "protocol": results["protocol"],
    }


def _cut(value: Any) -> Any:
    """The same without most of long lists, such as prompts; the manifest has all."""
    if isinstance(value, Mapping):
        return {key: _cut(one) for key, one in value.items()}
    if isinstance(value, list) and len(value) > numbers.MOST_LISTED:
        return [*value[: numbers.MOST_LISTED], f"… ({len(value)} in all)"]
    return value


def words(text: object) -> str:
    """Text as one line of Markdown that shows it as it is."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(line, quote=False))


def fenced(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
