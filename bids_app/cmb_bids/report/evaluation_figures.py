"""Drawings of an evaluation: FROC and reliability, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cmb_bids.report.figures import ACCENT, MUTED, OTHER_COLOURS, drawing, to_svg

COLOURS = (ACCENT, "#d55e00", *OTHER_COLOURS)
LOWEST_RATE, HIGHEST_RATE = 1 / 16, 16.0  # false positives per scan; below is drawn at the edge


def colour_of(position: int) -> str:
    """Colour of the tool at a position; the first is the reference."""
    return COLOURS[position % len(COLOURS)]


def draw_froc(
    curves: Mapping[str, pd.DataFrame], rates: Mapping[str, pd.DataFrame], name: str
) -> str:
    """Sensitivity over false positives per scan, a line for each tool, intervals at given rates.

    Parameters
    ----------
    curves, rates : mapping of str to DataFrame
        Name of the tool to its ``froc_curve`` and ``froc`` of one basis.
    name : str
        As `cmb_bids.report.figures.to_svg`.
    """
    with drawing(360) as figure:
        axes = figure.add_subplot()
        for position, (tool, curve) in enumerate(curves.items()):
            colour = colour_of(position)
            spent = curve["false_positives_per_scan"].clip(lower=LOWEST_RATE)
            axes.step(spent, curve["sensitivity"], where="post", color=colour, lw=2.2, label=tool)
            at = rates[tool][rates[tool]["reached"]].dropna(subset=["sensitivity_low"])
            shift = 1.03 ** (position - (len(curves) - 1) / 2)  # bars side by side
            axes.vlines(
                at["false_positives_per_scan"] * shift,
                at["sensitivity_low"],
                at["sensitivity_high"],
                color=colour,
                lw=1.4,
                alpha=0.6,
            )
        axes.set_xscale("log", base=2)
        axes.set_xlim(LOWEST_RATE, HIGHEST_RATE)
        ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16]
        axes.set_xticks(ticks, ["1/8", "1/4", "1/2", "1", "2", "4", "8", "16"], minor=False)
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("false positives per scan")
        axes.set_ylabel("sensitivity", labelpad=10)
        if len(curves) > 1:
            axes.legend(loc="lower right")
        return to_svg(figure, name)


def draw_reliability(tables: Mapping[str, pd.DataFrame], name: str) -> str:
    """Share of lesions over the probability said, and how many detections said it.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Name of the tool to its ``reliability`` of one basis.
    name : str
        As `cmb_bids.report.figures.to_svg`.
    """
    with drawing(440, width=460) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        above.plot([0, 1], [0, 1], color=MUTED, lw=1.2, ls="--")
        for position, (tool, table) in enumerate(tables.items()):
            colour, filled = colour_of(position), table[table["detections"] > 0]
            above.plot(
                filled["mean_probability"], filled["lesion_share"],
                color=colour, marker="o", ms=5, lw=1.6, label=tool,
            )  # fmt: skip
            known = filled.dropna(subset=["lesion_share_low"])
            above.vlines(
                known["mean_probability"], known["lesion_share_low"], known["lesion_share_high"],
                color=colour, lw=1.2, alpha=0.6,
            )  # fmt: skip
            width = 0.08 / len(tables)
            left = table["bin_low"] + 0.01 + position * width
            below.bar(left, table["detections"], width=width, align="edge", color=colour)
        above.set_xlim(0, 1)
        above.set_ylim(-0.02, 1.02)
        above.set_ylabel("share that is a lesion", labelpad=10)
        below.set_ylabel("detections", labelpad=10)
        if max(np.max(table["detections"]) for table in tables.values()) > 200:
            below.set_yscale("symlog", linthresh=10)
        below.set_xlabel("probability said")
        if len(tables) > 1:
            above.legend(loc="upper left")
        return to_svg(figure, name)
