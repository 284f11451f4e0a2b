"""How is the help of a verb ordered? Its options stand under a heading each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

HEADINGS = ("Method", "Sampling", "Measuring", "Where", "Output")
# Options of several verbs that stand under the same heading everywhere.
_USUAL = {
    "Sampling": (
        "num_samples", "timesteps", "num_inference_steps", "guidance_scale", "labels", "prompts",
        "height", "width", "pipeline_options", "seed", "batch_size", "num_bins", "num_images",
        "num_held_out", "sparsities", "steps", "guidance_scales", "sizes", "num_tokens",
    ),
    "Measuring": ("metrics", "feature_extractor", "reference", "clip"),
    "Method": ("blocks", "sparsity", "pattern", "layers"),
    "Where": ("device", "dtype", "max_memory", "gram_memory", "backend", "time_limit", "limit_s"),
    "Output": (
        "out", "overwrite", "dry_run", "gpu_rate", "as_json", "repo", "private", "set_folder",
        "images", "check",
    ),
}  # fmt: skip


class GroupedCommand(click.Command):
    """A command whose help groups its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading; those without one come first."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(self._heading_of(parameter), []).append(record)
        for heading in ("Options", *HEADINGS):
            if heading in groups:
                with formatter.section(heading):
                    formatter.write_dl(groups[heading])

    def _heading_of(self, parameter: click.Parameter) -> str:
        usual = {name: heading for heading, names in _USUAL.items() for name in names}
        given: dict[str, str] = getattr(self.callback, "headings", {})
        name = str(parameter.name)
        return given.get(name) or usual.get(name, "Options")


def grouped(command: Callable[..., Any], heading: str, names: Iterable[str]) -> Callable[..., Any]:
    """Put the options with these names under a heading."""
    command.headings = {  # type: ignore[attr-defined]
        **getattr(command, "headings", {}), **dict.fromkeys(names, heading),
    }  # fmt: skip
    return command
