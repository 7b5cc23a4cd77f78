#!/usr/bin/env python3
"""The report of an evaluation: a self-contained page whose numbers and sentences agree with the journal."""

import errno
import html
import os
import re
import sys
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import synthetic_journal as synthetic
from harp.evaluation.journal import ENTROPY_BINS, Cell, Example, Journal, JournalError
from harp.evaluation.report import write_report
from harp.evaluation.report_curves import curves, grids
from harp.evaluation.report_data import read_results
from harp.evaluation.report_figures import Canvas, _band
from harp.evaluation.report_text import grid_cell, is_short, sentence, shorten

VOID = {"meta", "br", "link", "img", "input", "hr", "wbr"}


class Page(HTMLParser):
    """What a browser would find: tags, ids, attributes. Complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.attributes, self.open = [], [], [], []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        found = self.open.pop()
        assert found == tag, (found, tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += data.replace("\N{NO-BREAK SPACE}", " ")


class ReportTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.directory = Path(folder.name)

    def write(self, columns, task="gsm8k", n=None, model="m"):
        synthetic.write_values(self.directory, columns, task, n, model)

    def results(self, examples=slice(None)):
        return read_results([self.directory], "vanilla", examples)

    def page(self, baseline="vanilla"):
        page_path, markdown_path = write_report([self.directory], baseline)
        self.markdown = markdown_path.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
        self.html = page_path.read_text(encoding="utf-8")
        page = Page(self.html)
        self.assertEqual(len(page.ids), len(set(page.ids)))
        for table in re.findall(r"(?:^\|.*\n)+", self.markdown, re.MULTILINE):
            self.assertEqual(len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}), 1, table)
        return page

    def sentences(self):
        return [sentence(pair).replace("\N{NO-BREAK SPACE}", " ") for pair in self.results()[1]]


class WholeReport(ReportTest):
    def test_a_full_journal(self):
        synthetic.write(self.directory, n=40, models=["SmolLM2"], tasks=["commonsense_qa", "cnn_dailymail"],
                        unfinished=("beam", 25))
        page = self.page()

        # Nothing is loaded or run.
        self.assertFalse({"script", "link", "img", "iframe", "object"} & set(page.tags))
        for name, value in page.attributes:
            if name in ("href", "xlink:href", "src"):
                self.assertTrue(value.startswith("#"), value)
        self.assertNotRegex(self.html, r"@import|url\((?!#)")

        # Figures use the page's colour and do not paint its background; each reference has its id.
        self.assertEqual(page.tags.count("svg"), 2 + 1 + 2 + 1 + 1)  # thresholds, forest, cost, hesitations, entropies
        self.assertIn("currentColor", self.html)
        self.assertNotIn("#012345", self.html)
        for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', self.html):
            self.assertIn(reference, page.ids)

        # Texts of models are shown as text.
        self.assertNotIn("<b>", self.html)
        self.assertIn("<b>answer</b> of harp & co", page.words)
        self.assertNotIn("<b>", self.markdown)

        self.assertIn("25 of 40", page.words)
        self.assertIn("◐ 25 of 40", self.markdown)
        self.assertIn("arXiv 2412.07282", page.words)
        self.assertIn("78.79", page.words)
        self.assertIn("0123456789abcdef" * 4, page.words)
        columns, pairs = self.results()
        for column in columns:
            if column.unit == "percent":
                self.assertIn(f"{100 * column.mean:.1f} %", page.words)
                self.assertIn(f"{100 * column.mean:.1f} %", self.markdown)
        for pair in pairs:
            self.assertIn(sentence(pair).replace("\N{NO-BREAK SPACE}", " "), page.words)

        first = self.html
        self.page()
        self.assertEqual(self.html, first)
        self.assertEqual(sorted(path.name for path in self.directory.glob("report*")), ["report.html", "report.md"])

    def test_hostile_names(self):
        name = 'a|b <script>alert("1")</script> $x$ _y_ & `z`\\'
        values = {id: float(id % 3 == 0) for id in range(12)}
        changes = {"task_title": name, "model_file": name, "versions": {name: name}, name: name, "paper_column": None}
        for model in (name, "plain"):
            self.write({("vanilla", 0): (values, changes), (name, 0): ({**values, 0: 0.0, 1: 1.0}, changes)}, model=model)
        page = self.page()
        self.assertNotIn("script", page.tags)
        self.assertIn(name, page.words)
        self.assertNotIn("<script", self.markdown)
        drawn = [html.unescape(label) for label in re.findall(r"<text[^>]*>([^<]*)</text>", self.html)]
        self.assertIn(name, drawn, "not as it is: taken for mathematics")
        self.assertNotIn("paper", self.markdown.split("## Differences")[0])

    def test_nothing_to_report(self):
        with self.assertRaisesRegex(JournalError, "there is no journal"):
            write_report([self.directory])
        Journal(self.directory).close()
        with self.assertRaisesRegex(JournalError, "nothing has been run yet"):
            write_report([self.directory])
        self.assertFalse((self.directory / "report.html").exists())

    def test_without_a_baseline_or_examples(self):
        self.write({("harp", 0): {1: 1.0, 2: 0.0}, ("harp-2", 0): {}}, n=2)
        page = self.page()
        self.assertIn("There is nothing to compare: vanilla, the baseline, was not run", page.words)
        self.assertIn("There is nothing to compare: vanilla, the baseline, was not run", self.markdown)
        self.assertIn("50.0 %", page.words)


    def test_a_baseline_that_was_not_run(self):
        self.write({("vanilla", 0): {1: 1.0, 2: 0.0}}, n=2)
        self.assertIn("no other method was run beside vanilla", self.page().words)
        with self.assertRaisesRegex(JournalError, "--baseline: method 'vanila' was not run; there are vanilla"):
            write_report([self.directory], "vanila")


class Numbers(ReportTest):
    def test_a_comparison(self):
        vanilla = {id: float(id < 30) for id in range(100)}
        self.write({("vanilla", 0): vanilla, ("harp", 0): vanilla | dict.fromkeys((30, 31, 32), 1.0) | {0: 0.0}})
        said, = self.sentences()
        self.assertRegex(said, r"^harp 32\.0 %, vanilla 30\.0 %: \+2\.0 points, 95 % interval −\d\.\d to \+\d\.\d: "
                         r"no difference can be told; with 100 examples only one over \d\.\d points could have been seen\.$")

    def test_verdicts(self):
        ids = range(60)
        zero = dict.fromkeys(ids, 0.0)
        few = {id: float(id < 4) for id in ids}
        for treatment, changes, told in (
                (dict.fromkeys(ids, 1.0), {}, ": better, more than noise (p < 0.001)."),
                (dict.fromkeys(ids, 1.0), {"higher_is_better": False}, ": worse, more than noise (p < 0.001)."),
                (few, {}, "(p = 0.125, which counts where interval and test disagree); with 60"),
                (zero, {}, "no example came out differently; with 60 examples at least 6 would have had to, all the same way "
                           "(10.0 points).")):
            with self.subTest(told), tempfile.TemporaryDirectory() as folder:
                self.directory = Path(folder)
                self.write({("vanilla", 0): (zero, changes), ("harp", 0): (treatment, changes)})
                self.assertIn(told, self.sentences()[0])

    def test_correction_over_tasks(self):
        zero = dict.fromkeys(range(60), 0.0)
        for task, wins in (("gsm8k", 6), ("commonsense_qa", 1)):
            self.write({("vanilla", 0): zero, ("harp", 0): {id: float(id < wins) for id in zero}}, task)
        pairs = {pair.column.task: pair for pair in self.results()[1]}
        self.assertAlmostEqual(pairs["gsm8k"].comparison.p_value, 1 / 32)
        self.assertAlmostEqual(pairs["gsm8k"].adjusted_p, 2 / 32)
        self.assertIn("no difference can be told after correction for 2 tasks (p = 0.062; p = 0.031 alone)",
                      self.sentences()[1])

    def test_common_examples_only(self):
        vanilla = {id: float(id % 2) for id in range(20)}
        self.write({("vanilla", 0): vanilla, ("harp", 0): dict.fromkeys(range(15), 1.0),
                    ("harp", 1): dict.fromkeys(range(10, 20), 0.0)}, n=20)
        columns, (pair,) = self.results()
        self.assertEqual((pair.comparison.n, pair.comparison.baseline, pair.comparison.treatment), (5, 0.4, 0.5))
        self.assertEqual((columns[1].n, columns[1].n_examples), (5, 20))
        self.assertAlmostEqual(columns[1].spread, 1 / np.sqrt(2))

    def test_some_examples_only(self):
        vanilla, harp = {number: float(number < 30) for number in range(100)}, {number: 1.0 for number in range(100)}
        self.write({("vanilla", 0): vanilla, ("harp", 0): harp})
        for examples, words in [(slice(None, 60), "vanilla 50.0 %"), (slice(60, None), "vanilla 0.0 %"),
                                (slice(10, 40), "vanilla 66.7 %")]:
            [told] = [sentence(pair) for pair in self.results(examples)[1]]
            self.assertIn(words, told.replace("\N{NO-BREAK SPACE}", " "))
        paths = write_report([self.directory], examples=slice(60, None))
        self.assertEqual([path.name for path in paths], ["report-60-end.html", "report-60-end.md"])
        self.assertIn("Examples 60-end of each task", paths[1].read_text())
        self.assertNotIn("Not finished", paths[0].read_text())

    def test_not_comparable(self):
        values = {id: float(id % 2) for id in range(20)}
        self.write({("vanilla", 0): values, ("harp", 0): (values, {"protocol": "lm-eval", "model_sha256": "ff"}),
                    ("harp-2", 0): {1: 1.0}}, n=20)
        page = self.page()
        self.assertIn("harp: not comparable: run with another protocol and another model_sha256.", page.words)
        self.assertIn("harp-2: fewer than two examples in common so far.", page.words)

    def test_other_flags_are_not_comparable(self):
        values = {id: float(id % 2) for id in range(20)}
        for number, (name, value) in enumerate({"max_length": 512, "llama_args": ["--lora", "x"], "files_sha256": {"x": "ff"},
                                                "environment": {"LLAMA_ARG_X": "1"}, "kernels": True}.items()):
            with self.subTest(name):
                self.write({("vanilla", 0): values, ("harp", 0): (values, {name: value})}, model=f"m-{number}")
                problems = {pair.column.model: pair.problem for pair in self.results()[1]}
                self.assertEqual(problems[f"m-{number}"], f"not comparable: run with another {name}")

    def test_a_metric_that_is_no_number_concerns_only_its_comparison(self):
        values = {id: float(id % 2) for id in range(20)}
        self.write({("vanilla", 0): values, ("harp", 0): {**values, 3: float("nan")}, ("harp-2", 0): values})
        page = self.page()
        self.assertIn("harp: not comparable: example 3 has nan", page.words)
        self.assertIn("harp-2", page.words)

    def test_other_scales(self):
        changes = {"metric": "perplexity", "binary": False, "higher_is_better": False}
        vanilla = {id: 12.5 + id / 10 for id in range(20)}
        harp = {id: value - 2 for id, value in vanilla.items()}
        self.write({("vanilla", 0): (vanilla, changes), ("harp", 0): (harp, changes)})
        self.assertRegex(self.sentences()[0], r"^harp 11\.45, vanilla 13\.45: −2, 95 % interval −2 to −2: better, ")
        self.page()

    def test_flips(self):
        vanilla = {id: float(id < 30) for id in range(60)}
        self.write({("vanilla", 0): vanilla,
                    ("harp", 0): {id: 1.0 - value if id % 2 else value for id, value in vanilla.items()}})
        pair, = self.results()[1]
        self.assertEqual([flip.id for flip in pair.worse], [str(id) for id in range(1, 20, 2)])
        self.assertEqual([flip.id for flip in pair.better], [str(id) for id in range(31, 50, 2)])
        self.assertEqual(vars(pair.better[0]), {"id": "31", "target": "target 31", "baseline": "vanilla says 31",
                                                "treatment": "harp says 31", "steps": 10, "hesitations": 5, "question": ""})
        self.assertEqual((pair.n_better, pair.n_worse), (15, 15))
        words = " ".join(self.page().words.split())
        self.assertIn("Gained: 15, the first 10 of them", words)
        self.assertIn("Lost: 15, the first 10 of them Example 1, hesitations 5 of 10 target target 1 vanilla vanilla says 1 "
                      "this method harp says 1 Example 3,", words)
        self.assertIn("harp: 15 better, 15 worse", self.markdown)

    def test_flips_of_scores(self):
        self.write({("vanilla", 0): {1: 0.5, 2: 0.2, 3: 0.1, 4: 0.3}, ("harp", 0): {1: 0.4, 2: 0.6, 3: 0.2, 4: 0.3}},
                   "cnn_dailymail")
        [pair] = self.results()[1]
        self.assertEqual([flip.id for flip in pair.better], ["2", "3"])
        self.assertIn("Better: 2", self.page().words)

    def test_long_texts_unfold(self):
        self.assertEqual(shorten("one\ntwo"), "one two")
        self.assertEqual(shorten("b" * 300 + "e" * 300), "b" * 140 + " … " + "e" * 140)
        for text, short in ((" one\ntwo", True), ("b" * 280, True), ("b" * 281, False), ("one\n" * 8, False)):
            self.assertEqual(is_short(text), short, text)
        text = "begins" + " x" * 500 + " ends"
        with synthetic.unsynced(self.directory) as journal:
            for method, value in (("vanilla", 0.0), ("harp", 1.0)):
                cell = Cell("m", "gsm8k", method, 0)
                journal.begin(cell, synthetic.config("gsm8k", method, 0, 2))
                for id in "12":
                    journal.add(cell, Example(id, {"exact_match": value}, text, "t", 10, 1.0, 10, 5, [10] + [0] * (ENTROPY_BINS - 1)))
        page = self.page()
        self.assertEqual(page.tags.count("details"), 1 + 2 * 2)
        self.assertEqual((page.words.count(text), page.words.count(shorten(text))), (2 * 2, 2 * 2))


HARP = {"enabled": True, **synthetic.HARP}


class Curves(ReportTest):
    def write_options(self, *options):
        """Methods harp-0, harp-1, ... with these options; harp-0 gains example 0 of twenty, harp-1 examples 0 and 1, ..."""
        zero = dict.fromkeys(range(20), 0.0)
        self.write({("vanilla", 0): zero | {19: 1.0}} | {
            (f"harp-{index}", 0): (zero | dict.fromkeys(range(index + 1), 1.0), {"options": HARP | changes})
            for index, changes in enumerate(options)})
        return self.results()

    def test_lines(self):
        columns, _ = self.write_options(
            {"threshold": 2.0, "seed": 5}, {"threshold": 0.5}, {"threshold": "inf"}, {"strength": 0.3},
            {"threshold": 2.0, "beta": 0.7}, {"beta": 0.7}, {"view": "last", "beta": 2.0}, {"view": "last", "beta": 1.5})
        found = {(one.option, one.second_pass): [(line.label, [column.method for column in line.columns]) for line in one.lines]
                 for one in curves(columns)}
        # Another second pass makes another figure, another mix another line. A single value makes no line.
        self.assertEqual(found, {
            ("threshold", "view perturbed, strength 0.2"): [("beta 0.5", ["harp-1", "harp-0"]), ("beta 0.7", ["harp-5", "harp-4"])],
            ("beta", "view perturbed, strength 0.2"): [("threshold 2", ["harp-0", "harp-4"])],
            ("beta", "view last, strength 0.2"): [("threshold 1", ["harp-7", "harp-6"])]})

    def test_lines_are_told_apart_and_in_order(self):
        columns, _ = self.write_options(*(
            {"threshold": threshold, "plausibility": plausibility, "beta": beta, "view": "last"}
            for plausibility, threshold in ((0.1, 2.0), (0.0, 2.0), (0.0, 0.5)) for beta in (2.0, 1.5)))
        by_beta, by_threshold, by_plausibility = sorted(curves(columns), key=lambda one: one.option)[:1] + [
            next(one for one in curves(columns) if one.option == option) for option in ("threshold", "plausibility")]
        self.assertEqual([line.label for line in by_beta.lines], [
            "threshold 0.5, plausibility 0", "threshold 2, plausibility 0", "threshold 2, plausibility 0.1"])
        self.assertEqual([line.label for line in by_threshold.lines], ["beta 1.5", "beta 2"])
        self.assertEqual([line.label for line in by_plausibility.lines], ["threshold 2, beta 1.5", "threshold 2, beta 2"])

    def test_a_grid(self):
        columns, pairs = self.write_options({"beta": 2.0}, {"beta": 1.5}, {"beta": 2.0, "threshold": 3.0}, {"beta": 2.0, "strength": 0.1})
        [grid] = grids(columns)
        self.assertEqual((grid.second_pass, grid.betas), ("view perturbed, strength 0.2", [1.5, 2.0]))
        self.assertEqual([(label, [column and column.method for column in row]) for label, row in grid.rows],
                         [("threshold 1", ["harp-1", "harp-0"]), ("threshold 3", [None, "harp-2"])])
        by_method = {(pair.column.model, pair.column.task, pair.column.method): pair for pair in pairs}
        value, difference, flips = grid_cell(grid.rows[1][1][1], by_method)
        self.assertRegex(difference, r"^\+10\.0 \([-−]?\d+\.\d to \+\d+\.\d\)$")
        self.assertEqual((value, flips), ("15.0\N{NO-BREAK SPACE}%", "+3\N{NO-BREAK SPACE}−1"))
        page = self.page()
        self.assertIn("threshold 3", page.words)
        self.assertRegex(self.markdown, r"\n\| threshold 3 \|  \| 15\.0 %<br>\+10\.0 \([^|]*\)<br>\+3 −1 \|\n")

    def test_the_figure(self):
        columns, pairs = self.write_options({"beta": 2.0}, {"beta": 1.5})
        svg = Canvas().curves(curves(columns)[0], pairs)
        drawn = re.findall(r'<text[^>]*?(?: x="([\d.]+)" y="([\d.]+)")?(?: transform="[^"]*")?>([^<]*)</text>', svg)
        labels = [label for _, _, label in drawn]
        for label in ("vanilla, 5.0\N{NO-BREAK SPACE}%", "threshold 1", "1.5", "2", "beta", "difference from vanilla, points", "exact_match, %"):
            self.assertIn(label, labels)
        marks = [(label, float(y)) for _, y, label in drawn[:labels.index("difference from vanilla, points")]]
        right = dict(marks[:labels.index("exact_match, %")])
        left = dict(marks[labels.index("beta") + 1:])
        # The right axis has only possible values; vanilla's is 5 % above the difference.
        self.assertEqual((list(right), list(left)[:3]), (["0", "10", "20", "30"], ["−10", "0", "10"]))
        self.assertAlmostEqual(right["10"], (left["0"] + left["10"]) / 2, places=3)

    def test_a_band_is_of_the_difference(self):
        columns, pairs = self.write_options({"beta": 2.0})
        comparison = pairs[0].comparison
        self.assertEqual(_band(columns[1], comparison, pairs), (comparison.difference, comparison.low, comparison.high))
        self.assertEqual(_band(columns[1], None, []), (columns[1].mean,) * 3)
        self.assertEqual(_band(columns[1], None, pairs), (columns[1].mean - columns[0].mean,) * 3)

    def test_without_a_baseline(self):
        ones = {1: 1.0, 2: 0.0}
        self.write({(f"harp-{beta}", 0): (ones, {"options": HARP | {"beta": beta}}) for beta in (1.5, 2.0)})
        self.assertIn("threshold 1", self.page().words)


class Titles(ReportTest):
    def test_a_full_disk_is_an_error_that_names_the_file(self):
        self.write({("vanilla", 0): {1: 0.0, 2: 1.0}, ("harp", 0): {1: 1.0, 2: 1.0}})
        self.page()
        before = self.html
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a write's error has no name
        with mock.patch.object(Path, "write_text", lambda path, *_, **__: path.touch() or (_ for _ in ()).throw(full)), \
                self.assertRaisesRegex(OSError, "No space left on device: '.*report.html'"):
            write_report([self.directory])
        self.assertEqual((self.directory / "report.html").read_text(encoding="utf-8"), before)
        self.assertEqual(list(self.directory.glob("*.part")), [])

    def test_long_names_of_methods_can_be_broken(self):
        self.write({("vanilla", 0): {1: 0.0, 2: 1.0}, ("harp:view=last,beta=2", 0): {1: 1.0, 2: 1.0}})
        self.page()
        rows = re.findall('<th scope="row">(harp.*?)</th>', self.html)
        self.assertEqual(set(rows), {"harp:view=last,<wbr>beta=2"})
        self.assertIn("harp:view=last,beta=2", self.markdown)

    def test_titles_are_told_apart(self):
        values = {1: 1.0, 2: 0.0}
        for task, protocol, title in (
                ("gsm8k", "lm-eval", ["Questions"]),
                ("commonsense_qa", "generative", ["Questions, generative", "Questions, lm-eval"]),
                ("cnn_dailymail", "lm-eval", ["Questions, lm-eval, cnn_dailymail", "Questions, generative",
                                              "Questions, lm-eval, gsm8k"])):
            self.write({("vanilla", 0): (values, {"task_title": "Questions", "protocol": protocol})}, task)
            self.assertEqual([column.title for column in self.results()[0]], title)


if __name__ == "__main__":
    unittest.main()
