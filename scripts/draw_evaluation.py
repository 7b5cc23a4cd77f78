#!/usr/bin/env python3
"""Draws the table of docs/EVALUATION.md as docs/images/evaluation.svg: differences from vanilla with their intervals, by task.

    scripts/draw_evaluation.py [FILE]     after a change of the table; needs matplotlib (of .[eval])
"""

import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
HARP, OTHER = "#d9730d", "#2f86d6"
ROW = 0.2  # inches
DIFFERENCE = re.compile(r"([+-]?[\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)")


@dataclass(frozen=True)
class Row:
    task: str
    label: str
    is_harp: bool
    difference: float
    low: float
    high: float
    is_clear: bool  # p, corrected by Holm, below 0.05


def read_rows(markdown: str) -> list[Row]:
    """The rows of the table that begins with `| model | task |`. Those without an interval are left out."""
    rows, model, in_table = [], "", False
    for line in markdown.splitlines():
        in_table = line.startswith("| model | task | examples |") or (in_table and line.startswith("|"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not in_table or len(cells) < 9:
            continue
        model = cells[0] or model
        task, look, found = cells[1].rstrip(" †‡§"), cells[4], DIFFERENCE.fullmatch(cells[6])
        if found:
            p = float(cells[8].removeprefix("< "))
            short = re.sub(r"-Instruct|-Coder| Q\w+$|2\.5", "", model)
            rows.append(Row(task, f"{short}: {look}", look.startswith("HARP"), *map(float, found.groups()), is_clear=p < 0.05))
    return rows


def draw(rows: list[Row], path: Path) -> None:
    tasks = defaultdict(list)
    for row in rows:
        tasks[row.task].append(row)
    n = len(rows) + 1.6 * len(tasks)
    style = {"svg.fonttype": "none", "svg.hashsalt": "harp", "font.family": "sans-serif", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure((8.2, ROW * n + 0.6), layout="constrained")
        axes = figure.subplots()
        y, ticks = 0.0, {}
        for task, of_task in tasks.items():
            axes.text(-0.02, y, task, transform=axes.get_yaxis_transform(), fontweight="bold", ha="right", va="center")
            for row in of_task:
                y += 1
                colour = HARP if row.is_harp else OTHER
                axes.plot([row.low, row.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot(row.difference, y, "o", color=colour, markersize=5, markerfacecolor=colour if row.is_clear else "white")
                ticks[y] = row.label
            y += 1.6
        axes.axvline(0, color="#333333", linewidth=1)
        axes.set_yticks(list(ticks), list(ticks.values()))
        axes.set(ylim=(y - 0.6, -1), xlabel="difference from vanilla, points, with 95 % interval (full circle: p, corrected, < 0.05)")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        for colour, name in ((HARP, "HARP's average"), (OTHER, "another second look, subtracted")):
            axes.plot([], [], color=colour, linewidth=2, marker="o", markersize=5, label=name)
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.75), frameon=False)
        figure.savefig(path, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


if __name__ == "__main__":
    found = read_rows((DOCS / "EVALUATION.md").read_text(encoding="utf-8"))
    if not found:
        sys.exit("draw_evaluation.py: docs/EVALUATION.md: no row of the table has a difference with an interval")
    draw(found, Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "images" / "evaluation.svg")
