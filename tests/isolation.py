"""Keeps from the tests what the user's environment would change of what is printed and fetched."""

from __future__ import annotations

import os

# They colour or cut what is printed, or sign in to the hub.
FOREIGN = (
    "FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE",
    "PYTHONWARNINGS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
)  # fmt: skip
LOCAL = "127.0.0.1,localhost"


def install() -> None:
    """For this process and all that it starts; called before anything reads these."""
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = LOCAL
