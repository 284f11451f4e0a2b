"""Colours that hold for eyes of every kind, on light and on dark paper.

Models differ by colour and by the shape of their marks. The hues are those of Okabe and Ito
(2008). On light paper they differ in lightness too, so that they stand out 3 : 1 (WCAG 2.2, 1.4.11)
and stay apart for eyes without one kind of cones.
"""

from __future__ import annotations

SERIES = {
    "light": ("#0a5aa4", "#782505", "#0da870", "#572346", "#a37f0c"),
    "dark": ("#56b4e9", "#ff9248", "#2fd0a5", "#e79ac6", "#f0e442"),
}
NUM_COLOURS = len(SERIES["light"])
PAPER = {"light": "#ffffff", "dark": "#14171c"}
INK = {"light": "#1b1e23", "dark": "#e7e9ec"}
# The strong end of a heat map; ink is read on every shade between it and paper.
HEAT = {"light": "#86bde3", "dark": "#1f5f8c"}
# As matplotlib calls them, and as text beside the plots shows them.
MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))


def mark(number: int) -> str:
    """The shape of a model's marks, as a character; by its place among the pruned models."""
    return MARKS[number % len(MARKS)][1]
