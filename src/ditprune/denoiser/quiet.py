"""How are other libraries kept from writing to the terminal? For a while, and then as before.

They log names from the folder as they are, escape codes included.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module

_WITH_BARS = ("diffusers", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is logged, and no bars of diffusers and transformers are shown, inside the block."""
    before = logging.root.manager.disable
    with ExitStack() as stack:
        stack.callback(logging.disable, before)
        logging.disable(logging.CRITICAL)
        for library in _WITH_BARS:
            if library not in sys.modules:  # transformers need not be installed
                continue
            bars = import_module(f"{library}.utils.logging")
            if bars.is_progress_bar_enabled():
                stack.callback(bars.enable_progress_bar)
                bars.disable_progress_bar()
        yield
