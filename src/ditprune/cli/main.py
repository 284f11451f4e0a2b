"""What happens to a command line? The verb runs; a refusal becomes one line and exit code 2."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from importlib import import_module

import click

from ditprune.cli import console
from ditprune.errors import (
    DitpruneError,
    did_you_mean,
    is_out_of_memory,
    options_named,
    reason_of,
)
from ditprune.imports import without_collection
from ditprune.reporting.terminal import write_what_fits

# The verbs in the order of use, each with the first sentence of its help. The module of a verb is
# imported when the verb runs, because it imports torch.
VERBS = {
    "inspect": "Show what would be pruned, and in which groups; changes nothing.",
    "calibrate": "Observe the inputs of every target over samples of MODEL.",
    "prune": "Prune MODEL into the folder OUT.",
    "shrink": "Shrink MODEL into the folder OUT: whole heads and neurons go, a dense model stays.",
    "verify": "Read the folder OUT back from disk; exit 1 when any claim of its manifest is false.",
    "evaluate": "Draw the same seeds with DENSE and each PRUNED model, and measure the difference.",
    "report": "Make one self-contained HTML page of the results that `ditprune evaluate -o DIR` "
    "wrote.",
    "reproduce": "Repeat a STUDY of the paper with MODEL: the bundled one, or any pipeline.",
    "bench": "Time MODEL's own layers and step, dense and sparse, on this machine.",
    "push": "Upload the pruned folder OUT to the hub as REPO (USER/NAME), after verifying its "
    "claims.",
    "convert": "Pack the sparse weights of MODEL into the folder OUT, or unpack them; no bit is "
    "lost.",
    "mask": "Take the mask of a pruned folder, and apply it to a fine-tune or a fused LoRA.",
    "demo": "Prune the bundled DiT with magnitude, Wanda and DiT-Pruning, and compare.",
}

_BROKEN_PIPE = 128 + 13  # as shells say it of SIGPIPE
_HOW_TO_WAIT = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}  # the second overrides the first


class _Verbs(click.Group):
    """The verbs by name, with a suggestion for an unknown one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        with without_collection():
            module = import_module(f"ditprune.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS:
            raise click.UsageError(f"unknown command '{args[0]}'; {did_you_mean(args[0], VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="ditprune", prog_name="ditprune")
def app() -> None:
    """Prune a diffusion transformer after training.

    MODEL is a diffusers pipeline folder, a denoiser folder, a hub id, or 'bundled'.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 1 for a false claim, 2 for bad input."""
    share_processors()
    atexit.register(gc.freeze)  # or Python would look for garbage in all of torch for a second
    write_what_fits()
    with console.plain_warnings():
        code = run(args)
    drop_what_cannot_be_written()
    sys.exit(code)


def drop_what_cannot_be_written() -> None:
    """What is left for a full disk would change the exit code when Python ends."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed before
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def share_processors() -> None:
    """Let OpenMP's threads wait briefly before they sleep, unless the user says how they wait.

    libgomp's own threads spin for so long that beside other work everything takes 14 times as long
    (log/2026-11-27-threads.md). It reads the environment once, when torch is imported.
    """
    if _HOW_TO_WAIT.isdisjoint(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "5000"


def run(args: list[str] | None = None) -> int:
    """The exit code of one command line."""
    console.begin()
    with options_named():
        return _code_of(args)


def _code_of(args: list[str] | None) -> int:
    try:
        with console.saying_what_is_logged():
            result = app.main(args, prog_name="ditprune", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        console.show(error.ctx.get_help().splitlines())
        return 0
    except click.ClickException as error:
        console.say(f"error: {error.format_message()}")
        return 2
    except DitpruneError as error:
        console.say(f"error: {error}")
        return 2
    except SystemExit:  # click's own, where what read its help has ended
        console.say("stopped; what was to read the output has ended")
        return _BROKEN_PIPE
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
