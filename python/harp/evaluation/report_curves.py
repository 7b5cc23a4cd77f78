"""The effect of a method's threshold, beta, plausibility and strength: its columns as curves and as a table."""

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

from .report_data import Column

MIX = ("threshold", "beta", "plausibility")  # options of gate and mix, which leave the second pass itself the same
SWEPT = (*MIX, "strength")


@dataclass
class Line:
    """Columns that differ only in one option, ordered by its value."""

    label: str
    columns: list[Column]


@dataclass
class Curves:
    """The curves of one option, for one second pass on one task with one model."""

    option: str
    second_pass: str  # what distinguishes it from others of the model and task; may be empty
    lines: list[Line]


@dataclass
class Grid:
    """One second pass on one task with one model: a row per threshold and plausibility, a column per beta."""

    model: str
    title: str  # of the task
    second_pass: str
    betas: list[float]
    rows: list[tuple[str, list[Column | None]]]


def curves(columns: list[Column]) -> list[Curves]:
    """Curves in the order of SWEPT; a line has at least two values of its option."""
    found = []
    for option in SWEPT:
        for second_pass, group in _second_passes(columns, {*MIX, option}):
            lines = [sorted(line, key=lambda column: column.options[option])
                     for line in _groups(sorted(group, key=_mix), lambda column: _without(column, {option}))
                     if len({column.options[option] for column in line}) > 1]
            labels = _labels([line[0] for line in lines], {*MIX} - {option}, always={"threshold", "beta"} - {option})
            if lines:
                found.append(Curves(option, second_pass, [Line(*named) for named in zip(labels, lines)]))
    return found


def grids(columns: list[Column]) -> list[Grid]:
    """A grid for each second pass that was run with more than one gate or mix."""
    found = []
    for second_pass, group in _second_passes(columns, set(MIX)):
        betas = sorted({column.options["beta"] for column in group})
        rows = _groups(sorted(group, key=_mix), lambda column: _without(column, {"beta"}))
        labels = _labels([row[0] for row in rows], {"threshold", "plausibility"}, always={"threshold"})
        if len(betas) > 1 or len(rows) > 1:
            by_beta = [{column.options["beta"]: column for column in row} for row in rows]
            cells = [[row.get(beta) for beta in betas] for row in by_beta]
            found.append(Grid(group[0].model, group[0].title, second_pass, betas, list(zip(labels, cells))))
    return found


def _second_passes(columns: list[Column], apart_from: set[str]) -> Iterator[tuple[str, list[Column]]]:
    """(what distinguishes it from others of its model and task, its columns) for each second pass: columns that differ only in `apart_from`."""
    swept = [column for column in columns if column.reframes and column.n and _is_swept(column, apart_from)]
    for of_task in _groups(swept, lambda column: (column.model, column.task)):
        passes = _groups(of_task, lambda column: _without(column, apart_from))
        names = {name for name in _plain(of_task[0]) if name not in apart_from}
        for label, group in zip(_labels([group[0] for group in passes], names, always={"view"}), passes):
            yield label, group


def _is_swept(column: Column, names: set[str]) -> bool:
    return names <= column.options.keys() and math.isfinite(float(column.options["threshold"]))


def _mix(column: Column) -> tuple[float, float, float]:
    """Sort key: threshold, then plausibility, then beta."""
    return column.options["threshold"], column.options["plausibility"], column.options["beta"]


def _groups(columns: Iterable[Column], key: Callable[[Column], Hashable]) -> list[list[Column]]:
    found: dict[Hashable, list[Column]] = {}
    for column in columns:
        found.setdefault(key(column), []).append(column)
    return list(found.values())


def _without(column: Column, names: set[str]) -> str:
    return json.dumps({name: value for name, value in _plain(column).items() if name not in names}, sort_keys=True)


def _labels(columns: list[Column], names: set[str], always: set[str] = frozenset()) -> list[str]:
    """For each column, those of the options that distinguish it from the others; those in `always` even if they are the same."""
    plain = [_plain(column) for column in columns]
    told = [name for name in (plain[0] if plain else ())
            if name in names and (name in always or any(other.get(name) != plain[0][name] for other in plain))]
    return [", ".join(f"{name} {_number(one[name])}" for name in told if name in one) for one in plain]


def _plain(column: Column) -> dict:
    """Its settings, view and swept options first."""
    settings = column.settings
    return {name: settings[name] for name in ("view", *SWEPT) if name in settings} | settings


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
