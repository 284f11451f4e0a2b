"""How were the two text-to-image test beds made, and how do I make my own?

Trains, on scenes that `testbeds/scenes.py` draws and says in words, two stock diffusers folders:
a `PixArtSigmaPipeline` and a `FluxPipeline`, on one autoencoder and one T5 encoder.

    python examples/train_testbeds.py autoencoder --device cuda --minutes 1.5
    python examples/train_testbeds.py pixart --device cuda --minutes 3
    python examples/train_testbeds.py flux --device cuda --minutes 3
    python examples/train_testbeds.py decoder --minutes 15
    python examples/draw_testbed.py testbeds/pixart --out pixart.png

A stage ends at `--num-steps` or after `--minutes`, whichever comes first, and its learning rate
reaches 0 exactly then. Everything is resumable: stop it with Ctrl-C or kill -9 and run the same
command again. `card` writes the model cards again, with the figures of a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from testbed_training import loop  # noqa: E402
from testbed_training.autoencoder import train_autoencoder, train_decoder  # noqa: E402
from testbed_training.data import load  # noqa: E402
from testbed_training.flux import train_flux  # noqa: E402
from testbed_training.folders import write_card  # noqa: E402
from testbed_training.pixart import train_pixart  # noqa: E402
from testbed_training.settings import SIZES, Settings  # noqa: E402

STAGES = {
    "data": load,
    "autoencoder": train_autoencoder,
    "pixart": train_pixart,
    "flux": train_flux,
    "decoder": train_decoder,
}


def rewrite_cards(settings: Settings, figures: Path) -> None:
    """Write the cards again; `figures` maps a bed to its figures, shares of 1 by name."""
    of_beds = json.loads(figures.read_text(encoding="utf-8"))
    for bed, values in of_beds.items():
        facts = json.loads((settings.runs / f"{bed}.json").read_text(encoding="utf-8"))
        write_card(settings.out / bed, facts, values)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("stage", choices=[*STAGES, "card"])
    parser.add_argument("--out", type=Path, default=ROOT / "testbeds", help="of both folders")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "testbeds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--num-steps", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1e-3, help="the learning rate")
    parser.add_argument(
        "--nested-share", type=float, default=0.0, help="more objects inside others, of a batch"
    )
    parser.add_argument("--warmup", type=int, default=300, help="steps up to the full rate")
    parser.add_argument("--average", type=float, default=0.999, help="of the moving average")
    parser.add_argument("--save-minutes", type=float, default=2, help="between checkpoints")
    parser.add_argument("--num-scenes", type=int, default=300_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="that draw")
    parser.add_argument("--no-autocast", dest="autocast", action="store_false", help="float32")
    parser.add_argument("--start", type=Path, metavar="BED", help="weights to begin from")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--figures", type=Path, help="for the stage card")
    return parser.parse_args()


def main() -> None:
    options = vars(arguments())
    stage, figures = options.pop("stage"), options.pop("figures")
    settings = Settings(**{**options, "size": SIZES[options["size"]]})
    settings.out.mkdir(parents=True, exist_ok=True)
    settings.runs.mkdir(parents=True, exist_ok=True)
    if stage == "card":
        rewrite_cards(settings, figures)
        return
    load(settings)  # forks its workers, so before anything else
    loop.prepare_device(settings.device)
    STAGES[stage](settings)


if __name__ == "__main__":
    main()
