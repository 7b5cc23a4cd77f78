"""The best second look on a development set for each model and task, and its results on the reported examples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .journal import JournalError
from .questions import Questions, question_file
from .report_data import Column, Examples, Pair, adjusted, common_ids, read_groups

SAME = ("protocol", "metric", "model_sha256")  # must be the same for development and reported examples


@dataclass
class Choice:
    model: str
    task: str
    method: str  # its name in the development journal
    n_methods: int  # number of methods that it was chosen from
    n: int  # number of examples that it was chosen on
    n_left_out: int  # development examples left out because they are reported
    mean: float  # over those n examples
    unit: str  # of the mean, as in Column
    pair: Pair | None  # with the baseline, on the reported examples; None if it was not run on them


def choose(directories: Sequence[Path], baseline: str, pairs: list[Pair], questions: Questions) -> list[Choice]:
    """A choice for each model and task of `pairs` that the journals of `directories` have too.

    The choice is among the methods with HARP and the baseline's decoding: the best mean over the examples that all of them have
    and that are not reported; among equals the one that hesitates at fewer steps, then the first by name. The adjusted p of its
    pair is Holm's over the tasks of a model.

    Raises JournalError if a journal is missing, there is nothing in common, or no honest choice is possible.
    """
    reported: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        reported.setdefault((pair.column.model, pair.column.task), []).append(pair)
    choices = []
    for group in read_groups(directories, baseline):
        first = next(iter(group.values()))[0]
        if (first.model, first.task) in reported:
            choices.append(_choose(group, reported[first.model, first.task], questions))
    if not choices:
        raise JournalError(f"{_names(directories)}: no model and task there is reported here beside {baseline}")
    chosen = iter(adjusted([choice.pair for choice in choices if choice.pair], lambda pair: pair.column.model))
    for choice in choices:
        choice.pair = choice.pair and next(chosen)
    return choices


def _choose(group: dict[str, tuple[Column, Examples]], pairs: list[Pair], questions: Questions) -> Choice:
    baseline = pairs[0].baseline
    candidates = [(column, examples) for column, examples in group.values() if column.reframes and column.n == column.n_examples
                  and column.config.get("decoding") == baseline.config.get("decoding")]
    where = f"choosing for {baseline.model}, {baseline.task}"
    if not candidates:
        raise JournalError(f"{where}: no method with HARP and {baseline.method}'s decoding is finished on the development examples")
    first = candidates[0][0]
    if different := [key for key in SAME if first.config.get(key) != baseline.config.get(key)]:
        raise JournalError(f"{where}: the development examples were run with another {' and another '.join(different)}")
    ids = common_ids(*(examples for _, examples in candidates))
    shared = _shared(first, baseline, questions, where)
    left = [id for id in ids if id not in shared]
    if not left:
        raise JournalError(f"{where}: all {len(ids)} development examples are reported too: report others (--examples), or choose "
                           "on others")

    def rank(candidate: tuple[Column, Examples]) -> tuple[float, float]:
        column, examples = candidate
        return -column.sign * _mean(column, examples, left), _hesitation_share(examples, left)

    column, examples = min(candidates, key=rank)  # min() takes the first of equals; they are ordered by name
    return Choice(column.model, column.task, column.method, len(candidates), len(left), len(ids) - len(left),
                  _mean(column, examples, left), baseline.unit,
                  next((pair for pair in pairs if _made_of(pair.column) == _made_of(column)), None))


def _shared(development: Column, reported: Column, questions: Questions, where: str) -> set[str]:
    """Ids of the development examples whose questions are among those reported."""
    texts, reported_texts = questions.of(development), questions.of(reported)
    if texts is not None and reported_texts is not None:
        told = {_bare(reported_texts[number]) for number in reported.numbers}
        return {str(number) for number in development.numbers if _bare(texts[number]) in told}
    file, sha256 = question_file(development)
    if sha256 is None or sha256 != question_file(reported)[1]:
        raise JournalError(f"{where}: whether a development example is reported too cannot be told, since the journals do not name one "
                           f"and the same {file or 'data file'}: name the data folders of both with --data")
    return {str(number) for number in set(development.numbers) & set(reported.numbers)}


def _bare(text: str) -> str:
    return " ".join(text.split())


def _mean(column: Column, examples: Examples, ids: list[str]) -> float:
    metric = column.config["metric"]
    return float(np.mean([[by_id[id].metrics[metric] for id in ids] for by_id in examples.values()]))


def _hesitation_share(examples: Examples, ids: list[str]) -> float:
    chosen = [by_id[id] for by_id in examples.values() for id in ids]
    return sum(example.hesitations for example in chosen) / max(1, sum(example.steps for example in chosen))


def _made_of(column: Column) -> str:
    return json.dumps(column.settings, sort_keys=True)


def _names(directories: Sequence[Path]) -> str:
    return ", ".join(map(str, directories))
