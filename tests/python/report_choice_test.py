#!/usr/bin/env python3
"""The report's summary: the second look is chosen on development examples, and never on reported ones."""

import logging
import sqlite3
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import synthetic_journal as synthetic
from harp.evaluation.journal import JournalError
from harp.evaluation.questions import Questions
from harp.evaluation.report import write_report
from harp.evaluation.report_choice import choose
from harp.evaluation.report_data import read_results

HARP = {"enabled": True, **synthetic.HARP}
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every task that it reads


def right(*ids, n=20):
    return {id: float(id in ids) for id in range(n)}


def of(beta, **changes):
    return {"options": HARP | {"beta": beta}, **changes}


class ChoiceTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.report, self.development = self.folder / "report", self.folder / "development"

    def two_files(self, questions=None, development=None):
        """Makes data folders, and what configs say about them."""
        self.folders = self.folder / "data", self.folder / "other"
        return (synthetic.write_data(self.folders[0], questions or [f"report {number}" for number in range(20)]),
                synthetic.write_data(self.folders[1], development or [f"development {number}" for number in range(20)]))

    def write(self, directory, columns, changes, task="gsm8k"):
        synthetic.write_values(directory, {key: (values, settings | changes) for key, (values, settings) in columns.items()}, task)

    def choose(self, examples=slice(None), folders=None):
        pairs = read_results([self.report], "vanilla", examples)[1]
        return choose([self.development], "vanilla", pairs, Questions(self.folders if folders is None else folders))


class Choosing(ChoiceTest):
    def test_by_development_examples_alone(self):
        here, there = self.two_files()
        self.write(self.report, {("vanilla", 0): (right(1), {}), ("harp:beta=2", 0): (right(1, 2), of(2.0)),
                                 ("harp:beta=3", 0): (right(*range(15)), of(3.0))}, here)
        self.write(self.development, {("vanilla", 0): (right(*range(20)), {}), ("2", 0): (right(1, 2, 3), of(2.0)),
                                      ("3", 0): (right(1, 2), of(3.0))}, there)
        [choice] = self.choose()
        # The best development method, by its name in the report, though another is better on reported examples and vanilla on these.
        self.assertEqual((choice.method, choice.pair.column.method, choice.n_methods, choice.n, choice.n_left_out, choice.mean),
                         ("2", "harp:beta=2", 2, 20, 0, 0.15))
        page, markdown = write_report([self.report], chosen_on=[self.development], data=self.folders)
        self.assertRegex(markdown.read_text().replace("\N{NO-BREAK SPACE}", " "),
                         r"\| best second look \| 10\.0 %<br>\+5\.0 \([^|]*<br>harp:beta=2<br>best of 2 methods on 20 other examples, 15\.0 % there \|")
        self.assertIn("best second look", page.read_text())

    def test_a_lower_value_is_better_where_it_is(self):
        here, there = self.two_files()
        lower = {"higher_is_better": False}
        for directory, changes in ((self.report, here), (self.development, there)):
            self.write(directory, {("vanilla", 0): (right(1), {}), ("a", 0): (right(1), of(2.0)), ("b", 0): (right(), of(3.0))},
                       changes | lower)
        self.assertEqual(self.choose()[0].method, "b")

    def test_equals(self):
        here, there = self.two_files()
        methods = {("vanilla", 0): (right(1), {}), ("harp-10", 0): (right(1), of(3.0)), ("harp-9", 0): (right(2), of(2.0))}
        self.write(self.report, methods, here)
        self.write(self.development, methods, there)
        self.assertEqual(self.choose()[0].method, "harp-9")
        with sqlite3.connect(self.development / "journal.sqlite") as database:
            database.execute("UPDATE example SET hesitations = 6 WHERE cell = (SELECT number FROM cell WHERE method = 'harp-9')")
        database.close()
        self.assertEqual(self.choose()[0].method, "harp-10")

    def test_who_is_no_candidate(self):
        here, there = self.two_files()
        self.write(self.report, {("vanilla", 0): (right(1), {}), ("harp", 0): (right(1), of(0.5))}, here)
        self.write(self.development, {
            ("vanilla", 0): (right(1, 2, 3), {}), ("beam", 0): (right(1, 2, 3), of(2.0, decoding="beam 3")),
            ("unfinished", 0): (right(1, n=2), of(3.0, n_examples=20)), ("harp", 0): (right(1), of(0.5))}, there)
        [choice] = self.choose()
        self.assertEqual((choice.method, choice.n_methods, choice.n), ("harp", 1, 20))

    def test_not_run_on_the_reported(self):
        here, there = self.two_files()
        self.write(self.report, {("vanilla", 0): (right(1), {}), ("harp", 0): (right(1), of(0.5))}, here)
        self.write(self.development, {("harp:beta=2", 0): (right(1), of(2.0)), ("harp", 0): (right(), of(0.5))}, there)
        self.assertIsNone(self.choose()[0].pair)
        _, markdown = write_report([self.report], chosen_on=[self.development], data=self.folders)
        self.assertIn("| not run here<br>harp:beta=2<br>best of 2 methods on 20 other examples, 5.0\N{NO-BREAK SPACE}% there |", markdown.read_text())

    def test_holm_over_the_tasks_of_a_model(self):
        here, there = self.two_files()
        for task, beta in (("gsm8k", 2.0), ("commonsense_qa", 3.0)):  # another method is best on each
            same = {"data_sha256": {"csqa/dev_rand_split.jsonl": "1", "gsm8k/test.jsonl": "1"}}
            better = {(f"harp:beta={beta:g}", 0): (right(*range(6)), of(beta))}
            self.write(self.report, {("vanilla", 0): (right(), {})} | better, same, task)
            self.write(self.development, {(f"harp:beta={beta:g}", 0): (right(1, n=30), of(beta))}, same, task)
        choices = self.choose()
        self.assertEqual([choice.pair.column.method for choice in choices], ["harp:beta=3", "harp:beta=2"])
        for choice in choices:
            self.assertAlmostEqual(choice.pair.comparison.p_value, 1 / 32)
            self.assertEqual((choice.pair.family, choice.n), (2, 10))
            self.assertAlmostEqual(choice.pair.adjusted_p, 2 / 32)


class Published(ChoiceTest):
    def markdown(self, method):
        changes = {"data_sha256": {"gsm8k/test.jsonl": "1"}}
        self.write(self.report, {("vanilla", 0): (right(), {}), (method, 0): (right(*range(6)), of(0.5))}, changes)
        _, markdown = write_report([self.report])
        return markdown.read_text().replace("\N{NO-BREAK SPACE}", " ")

    def test_its_row(self):
        told = self.markdown("harp")
        self.assertIn("| m | vanilla | 0.0 %<br>20 examples |", told)
        self.assertRegex(told, r"\| m \| HARP as published \| 30\.0 %<br>\+30\.0 \(\+\d+\.\d to \+\d+\.\d\)<br>"
                               r"p = 0\.031, detectable \d+\.\d<br>hesitations 50\.0 %, time × 1\.00 \|")
        self.assertNotIn("best second look", told)

    def test_no_summary_without_it(self):
        self.assertNotIn("## Summary", self.markdown("harp:beta=0.9"))


class Overlap(ChoiceTest):
    METHODS = {("vanilla", 0): (right(1), {}), ("a", 0): (right(*range(10)), of(2.0)), ("b", 0): (right(*range(10, 19)), of(3.0))}

    def both(self, here, there):
        self.write(self.report, self.METHODS, here)
        self.write(self.development, self.METHODS, there)

    def test_reported_texts_are_left_out(self):
        # The first ten, on which "a" is good, are also reported, among others and with different spaces.
        here, there = self.two_files([*(f"more {number}" for number in range(10)), *(f"shared  {number} " for number in range(10))],
                                     [f"shared {number}" for number in range(10)] + [f"own {number}" for number in range(10)])
        self.both(here, there)
        [choice] = self.choose()
        self.assertEqual((choice.method, choice.n, choice.n_left_out), ("b", 10, 10))
        _, markdown = write_report([self.report], chosen_on=[self.development], data=self.folders)
        self.assertIn("best of 2 methods on 10 other examples (10 left out), 90.0\N{NO-BREAK SPACE}% there", markdown.read_text())

    def test_one_journal_and_two_parts(self):
        here, _ = self.two_files()
        self.both(here, here)
        for folders in (self.folders, []):  # recognised by texts, then by numbers
            [choice] = self.choose(slice(None, 10), folders)
            self.assertEqual((choice.method, choice.n, choice.n_left_out), ("b", 10, 10))
            [choice] = self.choose(slice(10, None), folders)
            self.assertEqual((choice.method, choice.n), ("a", 10))

    def test_refused(self):
        here, there = self.two_files()
        self.both(here, there)
        with self.assertRaisesRegex(JournalError, "m, gsm8k: whether a development example is reported too cannot be told, since the "
                                                  "journals do not name one and the same gsm8k/test.jsonl: name the data folders of both with --data"):
            self.choose(folders=self.folders[:1])
        self.development = self.report
        with self.assertRaisesRegex(JournalError, "all 20 development examples are reported too: report others"):
            self.choose()
        for number, (changes, message) in enumerate((({"model_sha256": "ff"}, "run with another model_sha256"),
                                                     ({"decoding": "beam 3"}, "no method with HARP and vanilla's decoding is finished"))):
            self.development = self.folder / str(number)
            self.write(self.development, self.METHODS, there | changes)
            with self.assertRaisesRegex(JournalError, message):
                self.choose()
        self.development = self.folder / "task"
        self.write(self.development, self.METHODS, there, "commonsense_qa")
        with self.assertRaisesRegex(JournalError, "no model and task there is reported here beside vanilla"):
            self.choose()


if __name__ == "__main__":
    unittest.main()
