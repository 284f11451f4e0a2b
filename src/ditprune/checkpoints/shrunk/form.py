"""What does a shrunk denoiser look like? Its form: what its class's constructor does not make.

The sizes of layers follow from the tensors. A form says the rest: the blocks that stay, the Linears
that became two, and the numbers that forwards read. In config.json it lies under
`quantization_config`, where diffusers looks for somebody who changes a model before its weights are
loaded. In memory it lies under a key of its own: quantisers refuse a model with the other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ditprune.checkpoints.shrunk.resize import number_of
from ditprune.errors import ModelError

FORMAT = 1
METHOD = "ditprune-shrunk"
# diffusers prints the name of a method that it does not know, so the name says what to do.
QUANT_METHOD = f"{METHOD}: do `pip install ditprune` and `import ditprune` before loading"
KEY = "quantization_config"
MARK = "_shrunk"  # the key in memory; diffusers keeps such keys, and makes no model from them
IN_COMPACT = "shrunk"  # where the quantization config of a compact folder holds a form

_PATH = re.compile(r"\w+(\.\w+)*")
_NUMBER = re.compile(r"[A-Za-z]\w*(\.\d+)?")


@dataclass(frozen=True)
class Form:
    """What a shrunk denoiser has else than its class makes.

    Modules are named as in the shrunk denoiser, whose lists are numbered from 0 again.

    Args:
        numbers: by module, its attributes and what they are; `split_sizes.1` is an item of a list.
        blocks: by list, which blocks of the original list stay, ascending.
        ranks: by layer, the rank of the two Linears in the place of one.
    """

    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    blocks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The value of `quantization_config` in config.json."""
        return {
            "quant_method": QUANT_METHOD,
            "format": FORMAT,
            "numbers": {path: dict(values) for path, values in self.numbers.items()},
            "blocks": {path: list(stay) for path, stay in self.blocks.items()},
            "ranks": dict(self.ranks),
        }

    @classmethod
    def from_config(cls, content: object, where: str = "config.json") -> Form:
        """From what `to_dict` gave, by way of JSON. Raises ModelError for anything else."""
        try:
            if not isinstance(content, Mapping):
                raise ValueError(f"it is {type(content).__name__}, expected an object")
            if content.get("format") != FORMAT:
                raise ValueError(f"format {content.get('format')!r}, this ditprune reads {FORMAT}")
            if others := content.keys() - {"quant_method", "format", "numbers", "blocks", "ranks"}:
                raise ValueError(f"{min(map(str, others))} is not known")
            numbers = {
                path: {_matches(_NUMBER, name): _whole(v, 1) for name, v in _items(values)}
                for path, values in _items(content.get("numbers", {}))
            }
            blocks = {path: _ascending(s) for path, s in _items(content.get("blocks", {}))}
            ranks = {path: _whole(rank, 1) for path, rank in _items(content.get("ranks", {}))}
            for path in (*filter(None, numbers), *blocks, *ranks):
                _matches(_PATH, path)
        except ValueError as error:
            raise ModelError(
                f"{where}: its form cannot be read ({error}); expected what `ditprune shrink` wrote"
            ) from None
        return cls(numbers, blocks, ranks)

    def then(self, later: Form) -> Form:
        """The form of a denoiser of this form that was shrunk again."""
        blocks = {
            path: tuple(self.blocks[path][i] for i in stay) if path in self.blocks else stay
            for path, stay in later.blocks.items()
        }
        numbers = {path: dict(values) for path, values in renamed(self.numbers, later).items()}
        for path, values in later.numbers.items():
            numbers.setdefault(path, {}).update(values)
        return Form(
            numbers,
            {**renamed(self.blocks, later), **blocks},
            {**renamed(self.ranks, later), **later.ranks},
        )

    def without(self, stay: Mapping[str, Sequence[int]]) -> Form:
        """The form of a denoiser of this form with fewer blocks, where its config says which."""
        gone = Form(blocks=stay)
        return Form(renamed(self.numbers, gone), self.blocks, renamed(self.ranks, gone))


def renamed(by_name: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """A mapping by modules or tensors, by their names after blocks have gone, without these."""
    names = {name: new_name(name, form.blocks) for name in by_name}
    return {new: by_name[name] for name, new in names.items() if new is not None}


def new_name(name: str, blocks: Mapping[str, Sequence[int]]) -> str | None:
    """The name of a module or tensor after blocks have gone; None for what lay in one of these."""
    for path, stay in blocks.items():
        if not name.startswith(f"{path}."):
            continue
        index, dot, rest = name[len(path) + 1 :].partition(".")
        if not index.isdecimal() or int(index) not in stay:
            return None
        name = f"{path}.{list(stay).index(int(index))}{dot}{rest}"
    return name


def is_form(content: object) -> bool:
    """Whether a quantization config says that a denoiser is shrunk."""
    method = content.get("quant_method") if isinstance(content, Mapping) else None
    return method in (METHOD, QUANT_METHOD)


def form_in(config: Mapping[str, Any], where: str = "config.json") -> Form | None:
    """The form in a denoiser's config.json; None if it is not shrunk. Raises ModelError."""
    content = config.get(KEY)
    if isinstance(content, Mapping) and IN_COMPACT in content:
        return Form.from_config(content[IN_COMPACT], where)
    return Form.from_config(content, where) if is_form(content) else None


def marked_form(denoiser: nn.Module) -> Form | None:
    """The form of a denoiser in memory; None if it is as its class makes it.

    One that was made anew from the config of a shrunk one is. Raises ModelError for one that is
    neither: somebody has changed it since.
    """
    form = (getattr(denoiser, "config", None) or {}).get(MARK)
    if not isinstance(form, Form):
        return None
    fits = list(_fits(denoiser, form))
    if any(fits) and not all(fits):
        raise ModelError(
            f"{type(denoiser).__name__}: its layers are no longer those that its config says; "
            "load the shrunk folder again"
        )
    return form if all(fits) else None


def shrunk_form(denoiser: nn.Module) -> Form:
    """The same; an empty form for one that is as its class makes it."""
    return marked_form(denoiser) or Form()


def mark_(denoiser: nn.Module, form: Form) -> None:
    """Note a form in the config of a denoiser, so that what `save_pretrained` writes loads again.

    One that was shrunk before has the form `shrunk_form(denoiser).then(form)` after a form that
    says what became of it. An empty form says that tensors alone are smaller. A denoiser without
    a config of diffusers stays as it is.
    """
    config = getattr(denoiser, "_internal_dict", None)
    if config is not None:
        denoiser._internal_dict = type(config)({**config, MARK: form})


def _fits(denoiser: nn.Module, form: Form) -> Iterator[bool]:
    """Whether a denoiser is as each part of a form says."""
    modules = dict(denoiser.named_modules())
    for path, stay in form.blocks.items():
        items = modules.get(path)
        yield isinstance(items, (nn.ModuleList, nn.Sequential)) and len(items) == len(stay)
    for path in form.ranks:
        yield path in modules and not isinstance(modules[path], nn.Linear)
    for path, values in form.numbers.items():
        for name, value in values.items():
            yield path in modules and number_of(modules[path], name) == value


def _items(content: object) -> Sequence[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{content!r:.60} is no object")
    return list(content.items())


def _matches(pattern: re.Pattern[str], name: object) -> str:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(f"{name!r:.60} is no name")
    return name


def _whole(value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{value!r:.60} is no whole number from {least} up")
    return value


def _ascending(content: object) -> tuple[int, ...]:
    if not isinstance(content, (list, tuple)) or not content:
        raise ValueError(f"{content!r:.60} is no list of blocks")
    stay = tuple(_whole(index, 0) for index in content)
    if list(stay) != sorted(set(stay)):
        raise ValueError(f"{list(stay)!r:.60} is not ascending")
    return stay
