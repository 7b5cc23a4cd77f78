"""What a report tells, as numbers: the journal's columns of results, and each method's comparison with the baseline."""

import json
import math
import re
from dataclasses import dataclass, field, replace

import numpy as np

from . import statistics
from .journal import ENTROPY_BINS, Cell, Journal, id_order

# What must be the same on both sides of a comparison; the rest of a config is what is compared, or describes the run.
SAME = ("protocol", "metric", "binary", "model_sha256", "data_sha256")
SWEPT = ("threshold", "strength", "beta")
ALL = slice(None)
FLIPS = 10  # examples shown each way


@dataclass
class Column:
    """The results of one method on one task with one model, over its seeds."""

    model: str
    task: str
    title: str  # of the task; unlike any other task's
    method: str
    configs: dict[int, dict]  # by seed
    unit: str  # "percent", "hundredths" (a score in 0..1, shown times 100 as in the paper) or "raw"
    n: int  # examples that are finished with every seed
    mean: float | None  # over those; None without any
    spread: float | None  # standard deviation of the mean over seeds; None with one seed
    hesitation_share: float | None  # of the steps; None without steps
    entropies: np.ndarray  # [ENTROPY_BINS] counts
    n_examples: int  # to be run, of those that are asked for

    @property
    def config(self):
        return next(iter(self.configs.values()))

    @property
    def options(self):
        return self.config.get("options", {})

    @property
    def reframes(self):
        return self.options.get("enabled", True)


@dataclass
class Flip:
    """An example on which baseline and treatment differ, with the answers of the first seed of either."""

    id: str
    target: str
    baseline: str
    treatment: str


@dataclass
class Pair:
    """A method beside the baseline of its model and task."""

    column: Column
    baseline: Column
    comparison: statistics.Comparison | None = None
    problem: str = ""  # why there is no comparison
    adjusted_p: float = math.nan  # Holm, over the tasks of a model and method
    family: int = 0  # how many tasks those are
    cost: statistics.Estimate | None = None  # seconds per token, relative to the baseline; None where no time was recorded
    better: list[Flip] = field(default_factory=list)  # at most FLIPS, the largest differences first
    worse: list[Flip] = field(default_factory=list)


def read_results(directory, baseline, examples=ALL) -> tuple[list[Column], list[Pair]]:
    """All columns, the baseline's first in each model and task, and all pairs in the same order.

    `examples`: the slice of each task's examples to tell of, such as those to choose options on and those held out.

    Raises JournalError if there is no journal or nothing in it.
    """
    columns, pairs = [], []
    with Journal(directory, read_only=True) as journal:
        groups = {}
        cells = sorted(journal.cells(), key=lambda cell: _natural(cell.method))
        for cell in sorted(cells, key=lambda cell: (cell.model, cell.task, cell.method != baseline)):
            groups.setdefault((cell.model, cell.task), {}).setdefault(cell.method, []).append(cell)
        for methods in groups.values():
            group = {method: _read_column(journal, cells, examples) for method, cells in methods.items()}
            _set_unit([column for column, _ in group.values()])
            columns += [column for column, _ in group.values()]
            if baseline in group:
                pairs += [_pair(*group[baseline], *read) for method, read in group.items() if method != baseline]
    _tell_titles_apart(columns)
    return columns, _adjusted(pairs)


def sweeps(columns) -> dict[tuple[str, str, str], list[list[Column]]]:
    """{(model, task, option): lines}, each line the columns that differ only in that option, by its value."""
    found = {}
    for option in SWEPT:
        lines = {}
        for column in columns:
            if column.reframes and column.n and math.isfinite(float(column.options.get(option, "inf"))):
                rest = {key: value for key, value in column.options.items() if key not in (option, "seed")}
                same = json.dumps([column.config.get("decoding"), rest], sort_keys=True)
                lines.setdefault((column.model, column.task, same), []).append(column)
        for (model, task, _), line in lines.items():
            if len({column.options[option] for column in line}) > 1:
                line.sort(key=lambda column: column.options[option])
                found.setdefault((model, task, option), []).append(line)
    return found


def _natural(text):
    """Sort key in which harp-2 comes before harp-10: numbers are every second part."""
    return [float(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", text))]


def _read_column(journal, cells: list[Cell], wanted: slice):
    """(column, {seed: {id: example}})"""
    configs = {cell.seed: journal.config(cell) for cell in cells}
    numbers = range(configs[cells[0].seed]["n_examples"])[wanted]
    examples = {cell.seed: {example.id: example for example in journal.examples(cell)
                            if wanted == ALL or int(example.id) in numbers} for cell in cells}
    metric = configs[cells[0].seed]["metric"]
    ids = _common(examples)
    by_seed = [np.mean([by_id[id].metrics[metric] for id in ids]) for by_id in examples.values()] if ids else []
    every = [example for by_id in examples.values() for example in by_id.values()]
    steps = sum(example.steps for example in every)
    cell = cells[0]
    return Column(
        model=cell.model, task=cell.task, title=configs[cell.seed].get("task_title") or cell.task, method=cell.method,
        configs=configs, unit="raw", n=len(ids),
        mean=float(np.mean(by_seed)) if ids else None,
        spread=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        hesitation_share=sum(example.hesitations for example in every) / steps if steps else None,
        entropies=np.sum([example.entropies for example in every], axis=0) if every else np.zeros(ENTROPY_BINS, int),
        n_examples=len(numbers)), examples


def _set_unit(columns):
    if all(column.mean is None or 0 <= column.mean <= 1 for column in columns):
        for column in columns:
            column.unit = "percent" if column.config.get("binary") else "hundredths"


def _tell_titles_apart(columns):
    """By the protocol, and where that is not enough, by the task's name."""
    for distinction in (lambda column: column.config.get("protocol", ""), lambda column: column.task):
        tasks = {}
        for column in columns:
            tasks.setdefault(column.title, set()).add(column.task)
        for column in columns:
            if len(tasks[column.title]) > 1:
                column.title += f", {distinction(column)}"


def _common(*sides):
    """Ids that every seed of every side has, in order."""
    return sorted(set.intersection(*(set(by_id) for side in sides for by_id in side.values())), key=id_order)


def _pair(baseline, base_examples, column, examples):
    pair = Pair(column, baseline)
    different = [key for key in SAME if baseline.config.get(key) != column.config.get(key)]
    ids = _common(base_examples, examples)
    if different:
        pair.problem = f"not comparable: run with another {' and another '.join(different)}"
    elif len(ids) < 2:
        pair.problem = "fewer than two examples in common so far"
    else:
        metric = column.config["metric"]
        values = [{seed: {id: by_id[id].metrics[metric] for id in ids} for seed, by_id in side.items()}
                  for side in (base_examples, examples)]
        pair.comparison = statistics.compare(*values, binary=column.config.get("binary", False))
        spent = [{id: (sum(by_id[id].seconds for by_id in side.values()), sum(by_id[id].n_tokens for by_id in side.values()))
                  for id in ids} for side in (base_examples, examples)]
        if all(sum(amounts) > 0 for side in spent for amounts in zip(*side.values())):
            pair.cost = statistics.relative_cost(*spent)
        pair.better, pair.worse = _flips(next(iter(base_examples.values())), next(iter(examples.values())), ids, column.config)
    return pair


def _flips(base, treatment, ids, config):
    sign = 1 if config.get("higher_is_better", True) else -1
    gains = {id: sign * (treatment[id].metrics[config["metric"]] - base[id].metrics[config["metric"]]) for id in ids}
    largest = sorted(ids, key=lambda id: -abs(gains[id]))  # stable: by id among equals
    return [[Flip(id, base[id].target, base[id].answer, treatment[id].answer) for id in largest if way * gains[id] > 0][:FLIPS]
            for way in (1, -1)]


def _adjusted(pairs):
    families = {}
    for index, pair in enumerate(pairs):
        if pair.comparison:
            families.setdefault((pair.column.model, pair.column.method), []).append(index)
    for indices in families.values():
        adjusted = statistics.holm([pairs[index].comparison for index in indices])
        for index, p_value in zip(indices, adjusted):
            pairs[index] = replace(pairs[index], adjusted_p=p_value, family=len(indices))
    return pairs
