#!/usr/bin/env python3
"""The sources of a report: the journals of several directories, and the questions in the data files that were run."""

import logging
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import synthetic_journal as synthetic
from harp.evaluation.journal import JournalError
from harp.evaluation.questions import Questions
from harp.evaluation.report import write_report
from harp.evaluation.report_data import read_results

VANILLA = {id: float(id == 1) for id in range(20)}
HARP = VANILLA | {7: 1.0}
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every task that it reads


class SourcesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.report = self.folder / "report"

    def test_several_journals(self):
        other = self.folder / "other"
        synthetic.write_values(self.report, {("vanilla", 0): VANILLA})
        synthetic.write_values(other, {("harp", 0): HARP})
        paths = write_report([self.report, other])
        self.assertEqual([path.parent for path in paths], [self.report] * 2)
        self.assertEqual([pair.column.method for pair in read_results([self.report, other], "vanilla")[1]], ["harp"])
        with self.assertRaisesRegex(JournalError, "m, gsm8k, vanilla, seed 0 is in .*report/journal.sqlite and in .*: give one of them"):
            read_results([self.report, self.report], "vanilla")

    def write(self, **changes):
        data = self.folder / "data"
        changes |= synthetic.write_data(data, [f"How many are {number}?" for number in range(20)])
        synthetic.write_data(self.folder / "others", ["How many are 7?"] * 20)
        synthetic.write_values(self.report, {("vanilla", 0): (VANILLA, changes), ("harp", 0): (HARP, changes)})
        return data

    def test_questions_only_from_the_very_file(self):
        data = self.write()
        others = self.folder / "others"
        for folders, shown in (([data], True), ([others, data], True), ([others], False), ([], False), ([self.folder / "nowhere"], False)):
            page, _ = write_report([self.report], data=folders)
            self.assertEqual(page.read_text().count("How many are 7?"), shown, folders)
            self.assertNotIn("How many are 8?", page.read_text())
            self.assertEqual("Questions are shown where --data names" in page.read_text(), not shown)

    def test_questions_of_a_folder_that_lacks_a_file(self):
        data = self.write(protocol="lm-eval")  # this protocol also needs gsm8k/train.jsonl
        [pair] = read_results([self.report], "vanilla")[1]
        self.assertIsNone(Questions([data]).of(pair.column))


if __name__ == "__main__":
    unittest.main()
