"""WHO COMPETES: a regrouping of a layer's scores [C_out, C_in] into groups [G, K].

Selection is not made here: `masks.py` keeps the k best of each group, whatever the groups are.
"""

from __future__ import annotations

from typing import Any

from ditprune.granularity.cag import CAG
from ditprune.granularity.channel import PerChannel
from ditprune.granularity.layer import PerLayer

GRANULARITIES: dict[str, Any] = {"layer": PerLayer, "channel": PerChannel, "cag": CAG}
