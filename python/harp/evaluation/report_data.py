"""The numbers of a report: the journal's columns of results, and each method's comparison with the baseline."""

import contextlib
import math
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from . import statistics
from .journal import ENTROPY_BINS, Cell, Example, Journal, JournalError, id_order

# Must be the same on both sides of a comparison. The rest of a config is what is compared, or only describes the run.
SAME = ("protocol", "metric", "binary", "model_sha256", "data_sha256", "max_length", "kernels", "llama_args", "files_sha256", "environment")
# Values of options that journals from earlier versions do not name.
EARLIER = {"gate": "entropy", "plausibility": 0.0, "view": "perturbed", "view_tokens": 10}
ALL = slice(None)
FLIPS = 10  # examples shown in each direction

Examples = dict[int, dict[str, Example]]  # by seed and id


@dataclass
class Column:
    """The results of one method on one task with one model, over its seeds."""

    model: str
    task: str
    title: str  # title of the task, different from all other tasks'
    method: str
    configs: dict[int, dict]  # by seed
    unit: str  # "percent", "hundredths" (a score in 0..1, shown times 100 as in the paper) or "raw"
    n: int  # examples that are finished with every seed
    mean: float | None  # over those n; None if n is 0
    spread: float | None  # standard deviation of the mean over seeds; None with one seed
    hesitation_share: float | None  # share of the steps; None without steps
    entropies: np.ndarray  # [ENTROPY_BINS] counts
    numbers: range  # of the examples asked for, finished or not; an example's id is its number

    @property
    def n_examples(self) -> int:
        return len(self.numbers)

    @property
    def config(self) -> dict:
        return next(iter(self.configs.values()))

    @property
    def reframes(self) -> bool:
        return self.config.get("options", {}).get("enabled", True)

    @property
    def options(self) -> dict:
        return {**(EARLIER if self.reframes else {}), **self.config.get("options", {})}

    @property
    def settings(self) -> dict:
        """What defines the method, independent of its name and of its seeds."""
        options = {name: value for name, value in self.options.items() if name != "seed"}
        return options | {"decoding": self.config.get("decoding")}

    @property
    def sign(self) -> int:
        """1 if higher values are better, -1 if lower ones are."""
        return 1 if self.config.get("higher_is_better", True) else -1


@dataclass
class Flip:
    """An example on which baseline and treatment differ, with both answers at the first seed."""

    id: str
    target: str
    baseline: str
    treatment: str
    steps: int  # of the treatment
    hesitations: int
    question: str = ""  # empty if no folder has the data


@dataclass
class Pair:
    """A method and the baseline of its model and task."""

    column: Column
    baseline: Column
    comparison: statistics.Comparison | None = None
    problem: str = ""  # why there is no comparison
    adjusted_p: float = math.nan  # Holm, over the tasks of a model and method
    family: int = 0  # the number of those tasks
    cost: statistics.Estimate | None = None  # seconds per token, relative to the baseline; None if no time was recorded
    better: list[Flip] = field(default_factory=list)  # at most FLIPS, largest differences first, then in order of id
    worse: list[Flip] = field(default_factory=list)
    n_better: int = 0  # number of all examples, also those not shown
    n_worse: int = 0


def read_results(directories: Sequence[Path], baseline: str, examples: slice = ALL) -> tuple[list[Column], list[Pair]]:
    """All columns, with the baseline's first for each model and task, and all pairs in the same order.

    `examples`: the slice of each task's examples to report, for example those held out from the choice of options.

    Raises JournalError like read_groups().
    """
    columns, pairs = [], []
    for group in read_groups(directories, baseline, examples):
        _set_unit([column for column, _ in group.values()])
        columns += [column for column, _ in group.values()]
        if baseline in group:
            pairs += [_pair(*group[baseline], *read) for method, read in group.items() if method != baseline]
    _tell_titles_apart(columns)
    return columns, adjusted(pairs, lambda pair: (pair.column.model, pair.column.method))


def read_groups(directories: Sequence[Path], baseline: str,
                examples: slice = ALL) -> Iterator[dict[str, tuple[Column, Examples]]]:
    """For each model and task its methods, the baseline first, from the journals of all directories together.

    Raises JournalError if a directory has no journal, or two have the same cell.
    """
    with contextlib.ExitStack() as stack:
        journals: dict[Cell, Journal] = {}
        for directory in directories:
            journal = stack.enter_context(Journal(directory, read_only=True))
            for cell in journal.cells():
                if cell in journals:
                    raise JournalError(f"{cell.model}, {cell.task}, {cell.method}, seed {cell.seed} is in {journals[cell].path} and in "
                                       f"{journal.path}: give one of them")
                journals[cell] = journal
        groups: dict[tuple[str, str], dict[str, list[Cell]]] = {}
        by_method = sorted(sorted(journals, key=lambda cell: cell.seed), key=lambda cell: _natural(cell.method))
        for cell in sorted(by_method, key=lambda cell: (cell.model, cell.task, cell.method != baseline)):
            groups.setdefault((cell.model, cell.task), {}).setdefault(cell.method, []).append(cell)
        for methods in groups.values():
            yield {method: _read_column(journals, cells, examples) for method, cells in methods.items()}


def _natural(text: str) -> list:
    """Sort key that puts harp-2 before harp-10: every second part is a number."""
    return [float(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", text))]


def _read_column(journals: dict[Cell, Journal], cells: list[Cell], wanted: slice) -> tuple[Column, Examples]:
    configs = {cell.seed: journals[cell].config(cell) for cell in cells}
    numbers = range(configs[cells[0].seed]["n_examples"])[wanted]
    examples = {cell.seed: {example.id: example for example in journals[cell].examples(cell)
                            if wanted == ALL or int(example.id) in numbers} for cell in cells}
    metric = configs[cells[0].seed]["metric"]
    ids = common_ids(examples)
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
        numbers=numbers), examples


def _set_unit(columns: list[Column]) -> None:
    if all(column.mean is None or 0 <= column.mean <= 1 for column in columns):
        for column in columns:
            column.unit = "percent" if column.config.get("binary") else "hundredths"


def _tell_titles_apart(columns: list[Column]) -> None:
    """Makes titles differ by adding the protocol or, if that is not enough, the task's name."""
    for distinction in (lambda column: column.config.get("protocol", ""), lambda column: column.task):
        tasks = {}
        for column in columns:
            tasks.setdefault(column.title, set()).add(column.task)
        for column in columns:
            if len(tasks[column.title]) > 1:
                column.title += f", {distinction(column)}"


def common_ids(*sides: Examples) -> list[str]:
    """Ids that every seed of every side has, sorted."""
    return sorted(set.intersection(*(set(by_id) for side in sides for by_id in side.values())), key=id_order)


def _pair(baseline: Column, base_examples: Examples, column: Column, examples: Examples) -> Pair:
    pair = Pair(column, baseline)
    different = [key for key in SAME if (baseline.config.get(key) or None) != (column.config.get(key) or None)]
    ids = common_ids(base_examples, examples)
    if different:
        pair.problem = f"not comparable: run with another {' and another '.join(different)}"
    elif len(ids) < 2:
        pair.problem = "fewer than two examples in common so far"
    else:
        metric = column.config["metric"]
        values = [{seed: {id: by_id[id].metrics[metric] for id in ids} for seed, by_id in side.items()}
                  for side in (base_examples, examples)]
        try:
            pair.comparison = statistics.compare(*values, binary=column.config.get("binary", False))
        except ValueError as error:  # a metric that is no number
            pair.problem = f"not comparable: {error}"
            return pair
        spent = [{id: (sum(by_id[id].seconds for by_id in side.values()), sum(by_id[id].n_tokens for by_id in side.values()))
                  for id in ids} for side in (base_examples, examples)]
        with contextlib.suppress(ValueError):  # no tokens or no time
            pair.cost = statistics.relative_cost(*spent)
        _add_flips(pair, next(iter(base_examples.values())), next(iter(examples.values())), ids)
    return pair


def _add_flips(pair: Pair, base: dict[str, Example], treatment: dict[str, Example], ids: list[str]) -> None:
    metric = pair.column.config["metric"]
    gains = {id: pair.column.sign * (treatment[id].metrics[metric] - base[id].metrics[metric]) for id in ids}
    largest = sorted(ids, key=lambda id: -abs(gains[id]))  # a stable sort: equals stay ordered by id
    better, worse = [[id for id in largest if way * gains[id] > 0] for way in (1, -1)]
    pair.better, pair.worse = [[Flip(id, base[id].target, base[id].answer, treatment[id].answer, treatment[id].steps,
                                     treatment[id].hesitations) for id in side[:FLIPS]] for side in (better, worse)]
    pair.n_better, pair.n_worse = len(better), len(worse)


def adjusted(pairs: list[Pair], family: Callable[[Pair], Hashable]) -> list[Pair]:
    """The pairs with p values adjusted by Holm's method within each family."""
    families: dict[Hashable, list[int]] = {}
    for index, pair in enumerate(pairs):
        if pair.comparison:
            families.setdefault(family(pair), []).append(index)
    pairs = list(pairs)
    for indices in families.values():
        p_values = statistics.holm([pairs[index].comparison for index in indices])
        for index, p_value in zip(indices, p_values):
            pairs[index] = replace(pairs[index], adjusted_p=p_value, family=len(indices))
    return pairs
