"""What happens to a command line? The verb runs; a refusal becomes one line and exit code 2."""

from __future__ import annotations

import sys

import click

from ditprune.cli import console
from ditprune.cli.bench import bench
from ditprune.cli.calibrate import calibrate
from ditprune.cli.convert import convert
from ditprune.cli.demo import demo
from ditprune.cli.evaluate import evaluate
from ditprune.cli.inspect import inspect
from ditprune.cli.mask import mask
from ditprune.cli.prune import prune
from ditprune.cli.push import push
from ditprune.cli.report import report
from ditprune.cli.reproduce import reproduce
from ditprune.cli.verify import verify
from ditprune.errors import DitpruneError, did_you_mean, is_out_of_memory, reason_of


class _Verbs(click.Group):
    """The verbs in the order of use, with a suggestion for an unknown one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            raise click.UsageError(
                f"unknown command '{args[0]}'; {did_you_mean(args[0], self.commands)}"
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="ditprune", prog_name="ditprune")
def app() -> None:
    """Prune a diffusion transformer after training.

    MODEL is a diffusers pipeline folder, a denoiser folder, a hub id, or 'bundled'.
    """


_VERBS = (
    inspect, calibrate, prune, verify, evaluate, report, reproduce, bench, push, convert, mask,
    demo,
)  # fmt: skip
for verb in _VERBS:
    app.add_command(verb)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 1 for a false claim, 2 for bad input."""
    with console.plain_warnings():
        sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """The exit code of one command line."""
    try:
        result = app.main(args, prog_name="ditprune", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        console.out.print(error.ctx.get_help(), markup=False)
        return 0
    except click.ClickException as error:
        console.say(f"error: {error.format_message()}")
        return 2
    except DitpruneError as error:
        console.say(f"error: {error}")
        return 2
    except OSError as error:  # a file that cannot be read or written
        where = f"{error.filename}: " if error.filename else ""
        console.say(f"error: {where}{error.strerror or error}")
        return 2
    except (KeyboardInterrupt, click.Abort) as stop:
        reason = str(stop.__cause__ or stop)  # click wraps what Ctrl-C raised
        console.say(f"stopped; {reason}" if reason else "stopped")
        return 130
    except (MemoryError, RuntimeError) as error:  # behind Abort, which is one too
        if not is_out_of_memory(error):
            raise
        console.say(
            f"error: out of memory ({reason_of(error)}); pass a smaller --batch-size or "
            "--max-memory where the command has it (`calibrate --dry-run` and `prune --dry-run` "
            "say what is needed)"
        )
        return 2
