"""The texts of a report: numbers for people, and the result of a comparison in one sentence."""

import json

from .report_choice import Choice
from .report_curves import Grid
from .report_data import Column, Flip, Pair
from .statistics import ALPHA

MINUS = "\N{MINUS SIGN}"
JOIN = "\N{NO-BREAK SPACE}"
ENDS = 140  # characters shown of a long text's beginning and of its end
PAPER_CAUTION = ("The paper's table (arXiv 2412.07282) is for orientation: other models, prompts and lengths, and about "
                 "200 examples a task. Its LAMBADA is generative: it does not compare with lm-eval's.")
HOW_COMPARED = ("Paired by example. Intervals: bootstrap over examples. p: McNemar's exact test for right and wrong answers "
                "with one seed a side, else a permutation test; Holm corrects for the tasks of one model and method. "
                "Detectable: the smallest difference that this many examples show four times out of five. Where few examples "
                "differ the interval comes out too narrow: go by p.")
HOW_CURVES = ("Lines join methods that differ in this option only. Each stands at its difference from {baseline} (dashed) on the same "
              "examples; the band is the 95 % interval of that difference, not of the value on the right, and too narrow where few "
              "examples differ. The best of many tried looks better than it is: choose on other examples.")
HOW_CHOSEN = ("Chosen on other examples: for each model and task, of the methods with HARP and {baseline}'s decoding, the one with the "
              "best mean on the development examples, those that are reported here left out; of equals that which hesitates less, then "
              "the first by name.")
HOW_SUMMARY = ("Differences from {baseline} with 95 % intervals; p after Holm's correction over the tasks of a row; detectable: what this "
               "many examples show four times out of five; time per token relative to {baseline}.")
HOW_FLIPPED = ("Up to ten a side: those with the largest difference, among equals the first of the task. With several seeds, the first "
               "of each.")
NO_QUESTIONS = "Questions are shown where --data names a folder with the very files that were run."
HOW_COST = "Model seconds per token on the same examples: ratio of sums, bootstrap interval."


def value(number, unit) -> str:
    if number is None:
        return "–"
    text = {"percent": f"{100 * number:.1f}{JOIN}%", "hundredths": f"{100 * number:.1f}", "raw": f"{number:.4g}"}[unit]
    return text.replace("-", MINUS)


def distance(number, unit, sign="") -> str:
    """A difference without its unit; sign "+" also shows a plus."""
    text = f"{number:{sign}.4g}" if unit == "raw" else f"{100 * number:{sign}.1f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def points(unit) -> str:
    return "" if unit == "raw" else " points"


def p_value(p) -> str:
    return f"<{JOIN}0.001" if p < 0.001 else f"{p:.3f}"


def significant(pair: Pair) -> bool:
    return pair.adjusted_p < ALPHA


def improves(pair: Pair) -> bool:
    """Whether the difference is an improvement by this metric."""
    return pair.comparison.difference * pair.column.sign > 0


def sentence(pair: Pair) -> str:
    """The result of comparing one method with the baseline, for people."""
    column, comparison = pair.column, pair.comparison
    if comparison is None:
        return f"{column.method}: {pair.problem}."
    unit = column.unit
    start = f"{column.method} {value(comparison.treatment, unit)}, {pair.baseline.method} {value(comparison.baseline, unit)}"
    if comparison.ties == comparison.n:
        told = "no example came out differently"
    else:
        start += (f": {distance(comparison.difference, unit, '+')}{points(unit)}, "
                  f"95{JOIN}% interval {interval(pair)}")
        told = _verdict(pair)
    return f"{start}: {told}{_power(pair)}."


def _verdict(pair):
    comparison, adjusted = pair.comparison, pair.adjusted_p
    alone = comparison.p_value
    over = f" after correction for {pair.family} tasks" if pair.family > 1 else ""
    if significant(pair):
        return f"{'better' if improves(pair) else 'worse'}, more than noise ({_stated(adjusted)}{over})"
    if alone < ALPHA:
        return f"no difference can be told{over} ({_stated(adjusted)}; {_stated(alone)} alone)"
    if comparison.low > 0 or comparison.high < 0:
        return f"no difference can be told ({_stated(alone)}, which counts where interval and test disagree)"
    return "no difference can be told"


def _stated(p):
    return f"p{JOIN}{p_value(p)}" if p < 0.001 else f"p{JOIN}={JOIN}{p_value(p)}"


def _power(pair):
    comparison, unit = pair.comparison, pair.column.unit
    least = comparison.minimum_detectable
    if significant(pair):
        return ""
    if least is None:
        return f"; {comparison.n} examples like these cannot say what could have been seen"
    amount = f"{distance(least, unit)}{points(unit)}"
    if comparison.ties == comparison.n:
        return f"; with {comparison.n} examples at least 6 would have had to, all the same way ({amount})"
    return f"; with {comparison.n} examples only one over {amount} could have been seen"


def interval(pair: Pair) -> str:
    """The interval of the difference."""
    comparison, unit = pair.comparison, pair.column.unit
    return f"{distance(comparison.low, unit, '+')} to {distance(comparison.high, unit, '+')}"


def detectable(pair: Pair) -> str:
    least = pair.comparison.minimum_detectable
    return "–" if least is None else distance(least, pair.column.unit)


def difference_row(pair: Pair) -> list[str]:
    comparison = pair.comparison
    return [str(comparison.n), distance(comparison.difference, pair.column.unit, "+"), interval(pair),
            p_value(comparison.p_value), p_value(pair.adjusted_p), detectable(pair),
            f"{comparison.wins} / {comparison.losses} / {comparison.ties}"]


def gained_lost(pair: Pair) -> str:
    """Numbers of examples on which the method does better and worse."""
    counts = [pair.comparison.wins, pair.comparison.losses][::pair.column.sign]
    return f"+{counts[0]}{JOIN}{MINUS}{counts[1]}"


def against(pair: Pair) -> str:
    return f"{distance(pair.comparison.difference, pair.column.unit, '+')} ({interval(pair)})"


def grid_cell(column: Column | None, pairs: dict[tuple[str, str, str], Pair]) -> list[str]:
    """One method of a grid, in lines: its value, its difference from the baseline, examples gained and lost."""
    if column is None:
        return [""]
    pair = pairs.get((column.model, column.task, column.method))
    more = [against(pair), gained_lost(pair)] if pair and pair.comparison else []
    return [result(column), *more]


def grid_cells(columns: list[Column | None], pairs: dict[tuple[str, str, str], Pair]) -> list[list[str]]:
    return [grid_cell(column, pairs) for column in columns]


def beta_heads(grid: Grid) -> list[str]:
    return [f"beta {beta:g}" for beta in grid.betas]


def baseline_cell(column: Column) -> list[str]:
    """The baseline's cell, like summary_cell()."""
    return [result(column), f"{column.n} examples"]


def summary_cell(pair: Pair) -> list[str]:
    """The cell of one method and its comparison with the baseline, in lines."""
    if pair.comparison is None:
        return [result(pair.column), pair.problem]
    cost = f", time ×{JOIN}{pair.cost.value:.2f}" if pair.cost else ""
    return [result(pair.column), against(pair), f"{_stated(pair.adjusted_p)}, detectable {detectable(pair)}",
            f"hesitations {hesitations(pair.column)}{cost}"]


def chosen_cell(choice: Choice) -> list[str]:
    """Like summary_cell(), with what was chosen and on how many examples."""
    left_out = f" ({choice.n_left_out} left out)" if choice.n_left_out else ""
    methods = f"{choice.n_methods} methods" if choice.n_methods > 1 else "1 method"
    origin = f"best of {methods} on {choice.n} other examples{left_out}, {value(choice.mean, choice.unit)} there"
    if choice.pair is None:
        return ["not run here", choice.method, origin]
    return [*summary_cell(choice.pair), choice.pair.column.method, origin]


def sides(pair: Pair) -> list[tuple[str, int, list[Flip]]]:
    """For each of the two directions: (what happened, to how many examples, those that are shown)."""
    gained, lost = ("Gained", "Lost") if pair.column.config.get("binary") else ("Better", "Worse")
    return [(gained, pair.n_better, pair.better), (lost, pair.n_worse, pair.worse)]


def is_short(text: str) -> bool:
    """Whether it is short enough to be shown in full."""
    return len(text) <= 2 * ENDS and text.count("\n") < 8


def shorten(text: str) -> str:
    """A text on one line; of a long one only beginning and end."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 2 * ENDS else f"{flat[:ENDS]} … {flat[-ENDS:]}"


def cost_row(pair: Pair) -> list[str]:
    return [f"{pair.cost.value:.2f}", f"{pair.cost.low:.2f} to {pair.cost.high:.2f}"]


def result(column: Column | None) -> str:
    """A column's mean on one line, with its spread and its completeness."""
    if column is None:
        return ""
    spread = "" if column.spread is None else f" ± {distance(column.spread, column.unit)}"
    return value(column.mean, column.unit) + spread + (f" ◐ {completeness(column)}" if completeness(column) else "")


def hesitations(column: Column | None) -> str:
    return "" if column is None else value(column.hesitation_share, "percent")


def fact_rows(facts, *names) -> list[list[str]]:
    return [[name, *(by_fact.get(fact, "") for fact in names)] for name, by_fact in facts.items()]


def task_rows(tasks: list[Column]) -> list[list[str]]:
    return [[task.title, task.task, task.config.get("protocol", ""), task.config["metric"], str(task.n_examples)]
            for task in tasks]


def any_reframes(columns) -> bool:
    return any(column and column.reframes for column in columns)


def options(column: Column) -> str:
    """The options of a method, without the seed."""
    if not column.reframes:
        return "HARP off"
    return ", ".join(f"{key} {_plain(inner)}" for key, inner in column.options.items() if key not in ("seed", "enabled"))


def completeness(column: Column) -> str:
    """Finished and planned examples; empty for a complete column."""
    return f"{column.n} of {column.n_examples}" if column.n < column.n_examples else ""


def cut(text, length=300) -> str:
    """The text, cut at `length` characters."""
    return text if len(text) <= length else text[:length - 1] + "…"


def setting(inner) -> str:
    """One value of a config."""
    return cut(_plain(inner), 400)


def _plain(inner):
    if isinstance(inner, float):
        return f"{inner:g}"
    return inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False, sort_keys=True)
