"""Okabe and Ito's colours, which colour-blind readers can tell apart (Color Universal Design, 2008)."""

from __future__ import annotations

BLUE, ORANGE, RED, GREY, BLACK = "#0072B2", "#E69F00", "#D55E00", "#999999", "#000000"
WHEEL = (BLUE, ORANGE, "#009E73", RED, "#CC79A7", "#56B4E9", BLACK, GREY, "#B8A800")
