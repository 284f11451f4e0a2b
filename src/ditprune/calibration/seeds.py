"""Seeds belong to items: sample 17 of seed 0 draws the same noise in any batch of any run."""

from __future__ import annotations

import hashlib


def item_seed(purpose: str, seed: int, item: int) -> int:
    """A 63-bit seed of one item; different purposes never share noise."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{item}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
