"""The report of an evaluation: one self-contained HTML page and the same tables in Markdown."""

import contextlib
import csv
import html
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jinja2

from . import report_text as text
from .journal import JournalError
from .questions import Questions
from .report_choice import Choice, choose
from .report_curves import SWEPT, curves, grids
from .report_data import ALL, Column, Pair, read_results
from .report_figures import Canvas, Palette

HERE = Path(__file__).parent
METHODS_OF_PAPER = {"greedy": "greedy", "beam": "beam", "harp_greedy": "HARP greedy", "nucleus": "nucleus",
                    "harp_nucleus": "HARP nucleus"}
BASELINE = "vanilla"  # the default
PUBLISHED = "harp"  # the preset: the authors' options
# Shown in tables of their own; everything else in a config is listed unchanged.
SHOWN = {"options", "decoding", "protocol", "metric", "binary", "n_examples", "model_file", "model_sha256", "versions",
         "task_title", "paper_column", "higher_is_better"}


def write_report(directories: Sequence[Path], baseline: str = BASELINE, examples: slice = ALL, chosen_on: Sequence[Path] = (),
                 data: Iterable[str] = ()) -> tuple[Path, Path]:
    """Writes report.html and report.md into the first directory and returns their paths. `baseline` is the method to compare with.

    `examples`: the slice of each task's examples to report; part of the files' names (report-0-1000.html).
    `chosen_on`: directories of journals with development examples, on which the best second look is chosen.
    `data`: folders that may have the data files, for the examples' questions; only the files that were run are read.

    Raises JournalError if there is no journal or it is empty, if another baseline was not run, or if no honest choice is possible; OSError if the files cannot
    be written.
    """
    directory = Path(directories[0])
    questions = Questions(data)
    columns, pairs = read_results(directories, baseline, examples)
    if not columns:
        raise JournalError(f"{directory / 'journal.sqlite'}: nothing has been run yet: there is nothing to report")
    methods = list(dict.fromkeys(column.method for column in columns))
    if baseline not in methods and baseline != BASELINE:
        raise JournalError(f"--baseline: method {baseline!r} was not run; there are {', '.join(methods)}")
    choices = choose(chosen_on, baseline, pairs, questions) if chosen_on else []
    questions.add_to(pairs)
    part = "" if examples == ALL else f"{examples.start or 0}-{examples.stop or 'end'}"
    content = {**_tables(columns, pairs), **_second_looks(columns, pairs, choices), "baseline": baseline, "has_baseline": baseline in methods,
               "figures": _figures(columns, pairs), "examples": part,
               "lacks_questions": any(not flip.question for pair in pairs for flip in pair.better + pair.worse)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=lambda name: name.endswith(".html.jinja"), trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.globals["text"] = text
    environment.filters |= {"markdown": _markdown, "lines": _markdown_lines, "result": text.result, "hesitations": text.hesitations}
    paths = []
    for name in ("report.html", "report.md"):
        path = directory / (name.replace(".", f"-{part}.") if part else name)
        # An existing report stays whole if this one cannot be written.
        unfinished = path.with_suffix(path.suffix + ".part")
        try:
            unfinished.write_text(environment.get_template(f"{name}.jinja").render(content), encoding="utf-8", errors="replace")
            os.replace(unfinished, path)
        except OSError as error:  # of a full disk it names no file
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from None
        paths.append(path)
    return tuple(paths)


def _tables(columns: list[Column], pairs: list[Pair]) -> dict:
    """The content of both templates."""
    tasks = {}
    for column in columns:
        tasks.setdefault(column.task, column)
    methods, incomplete = {}, {}
    for column in columns:
        if finished := text.completeness(column):
            incomplete.setdefault(f"{column.model}, {column.method}", []).append(f"{column.title} {finished}")
        methods.setdefault(column.model, {}).setdefault(column.method, {})[column.task] = column
    return {
        "tasks": list(tasks.values()),
        "results": {model: {method: [by_task.get(task) for task in tasks] for method, by_task in by_method.items()}
                    for model, by_method in methods.items()},
        "paper": _paper(tasks.values()),
        "pairs": pairs,
        "incomplete": incomplete,
        "several_seeds": any(len(column.configs) > 1 for column in columns),
        "models": _distinct((column.model, fact, column.config.get(fact)) for column in columns
                            for fact in ("model_file", "model_sha256")),
        "methods": _distinct((column.method, fact, inner) for column in columns for fact, inner in (
            ("decoding", column.config.get("decoding")), ("options", text.options(column)),
            ("seeds", ", ".join(map(str, column.configs))))),
        "versions": _distinct((name, "version", version) for column in columns for config in column.configs.values()
                              for name, version in config.get("versions", {}).items()),
        "others": _distinct((key, "value", inner) for column in columns for config in column.configs.values()
                            for key, inner in config.items() if key not in SHOWN),
    }


def _second_looks(columns: list[Column], pairs: list[Pair], choices: list[Choice]) -> dict:
    """The summary, the grids, and the pairs that are in them."""
    by_method = {(pair.column.model, pair.column.task, pair.column.method): pair for pair in pairs}
    models = list(dict.fromkeys(column.model for column in columns))
    tasks = list(dict.fromkeys(column.task for column in columns))
    summary = {model: _summary(model, tasks, by_method, choices) for model in models}
    return {"summary": {model: rows for model, rows in summary.items() if len(rows) > 1}, "chosen": bool(choices),
            "by_method": by_method, "grids": grids(columns)}


def _summary(model: str, tasks: list[str], by_method: dict[tuple[str, str, str], Pair],
             choices: list[Choice]) -> dict[str, list[list[str]]]:
    """{row: cells by task}. Rows: the baseline and, if there are any, HARP as published and the chosen methods. A cell is a list of lines."""
    baselines = {task: pair.baseline for (of, task, _), pair in by_method.items() if of == model}
    published = {task: by_method[model, task, PUBLISHED] for task in tasks if (model, task, PUBLISHED) in by_method}
    chosen = {choice.task: choice for choice in choices if choice.model == model}
    rows = {}
    for name, found, cell in ((next((column.method for column in baselines.values()), ""), baselines, text.baseline_cell),
                              ("HARP as published", published, text.summary_cell), ("best second look", chosen, text.chosen_cell)):
        if found:
            rows[name] = [cell(found[task]) if task in found else [""] for task in tasks]
    return rows


def _distinct(facts: Iterable[tuple[str, str, object]]) -> dict[str, dict[str, str]]:
    """From (name, fact, value): {name: {fact: its distinct values, joined}}."""
    found = {}
    for name, fact, inner in facts:
        if inner is not None:
            found.setdefault(name, {}).setdefault(fact, {})[text.setting(inner)] = None
    return {name: {fact: "; ".join(values) for fact, values in by_fact.items()} for name, by_fact in found.items()}


def _paper(tasks: Iterable[Column]) -> dict:
    """The paper's table for our tasks: models, as in "results", and relative times; no models if it has none of the tasks."""
    with (HERE / "paper_table.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    paper_columns = [task.config.get("paper_column") for task in tasks]
    models = {}
    for row in rows if any(paper_columns) else []:
        models.setdefault(row["model"], {})[METHODS_OF_PAPER[row["method"]]] = [row.get(column, "") for column in paper_columns]
    times = [float(row["relative_time"]) for row in rows if row["method"].startswith("harp")]
    return {"models": models, "least_time": min(times), "most_time": max(times)}


def _figures(columns: list[Column], pairs: list[Pair]) -> dict[str, list[tuple[str, list[str]]]]:
    """{kind: [(model, its figures)]}"""
    canvas = Canvas()
    methods, tasks = Palette(column.method for column in columns), Palette(column.task for column in columns)
    compared = [pair for pair in pairs if pair.comparison]
    figures = {kind: [] for kind in ("forest", "cost", "hesitations", "entropies", *SWEPT)}

    for model in dict.fromkeys(column.model for column in columns):
        mine = [column for column in columns if column.model == model]
        my_pairs = [pair for pair in compared if pair.column.model == model]
        drawn = {
            "forest": [canvas.forest(group, methods) for group in _groups(my_pairs, lambda pair: pair.column.unit == "raw")],
            "cost": [canvas.cost(group, methods)
                     for group in _groups([pair for pair in my_pairs if pair.cost], lambda pair: pair.column.task)],
            "hesitations": _if_any(canvas.hesitations, [column for column in mine if column.reframes
                                                        and column.hesitation_share is not None], methods),
            "entropies": _if_any(canvas.entropies, _with_entropies(mine), tasks),
        }
        for found in curves(mine):
            task = found.lines[0].columns[0].task
            drawn.setdefault(found.option, []).append(canvas.curves(found, [pair for pair in my_pairs if pair.column.task == task]))
        for kind, svgs in drawn.items():
            if svgs:
                figures[kind].append((model, svgs))
    return figures


def _groups(items: list, key: Callable) -> Iterable[list]:
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups.values()


def _if_any(draw: Callable, columns: list[Column], palette: Palette) -> list[str]:
    return [draw(columns, palette)] if columns else []


def _with_entropies(columns: list[Column]) -> list[Column]:
    """For each task, the first method with entropies: the baseline if it has them."""
    found = {}
    for column in columns:
        if column.entropies.any():
            found.setdefault(column.task, column)
    return list(found.values())


def _markdown(cell: object) -> str:
    """Text escaped so that a cell of a Markdown table shows it unchanged."""
    flat = html.escape(str(cell), quote=False).replace("\n", " ").replace("\r", " ")
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", flat)


def _markdown_lines(cell: list[str]) -> str:
    """A cell of several lines."""
    return "<br>".join(map(_markdown, cell))
