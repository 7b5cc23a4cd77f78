#!/usr/bin/env python3
"""The journal of an evaluation: once add() has returned, the example is there exactly once, whatever happens; a refusal changes nothing."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from dataclasses import replace
from pathlib import Path

SUPPORT = Path(__file__).resolve().parents[1] / "support"
sys.path.insert(0, str(SUPPORT))
import evaluation_sources  # noqa: F401
from harp.evaluation.journal import ENTROPY_BINS, Cell, Example, Journal, JournalError

CELL = Cell("model", "task", "method", 0)
CONFIG = {"options": {"threshold": 1.0, "beta": 0.5}, "n_examples": 3}


def example(id, answer="yes"):
    return Example(str(id), {"acc": 1.0, "rouge1": 0.31}, answer, "ja \0 \N{SNOWMAN}", 7, 0.125, 8, 3, [1] * ENTROPY_BINS)


def child(directory, code):
    """A process that runs `code` with an open journal, with its standard output in a pipe."""
    script = f"""
        import sys
        sys.path.insert(0, {str(SUPPORT)!r})
        import evaluation_sources
        from harp.evaluation.journal import ENTROPY_BINS, Cell, Example, Journal, JournalError
        cell = Cell("model", "task", "method", 0)
        journal = Journal({str(directory)!r})
        journal.begin(cell, {CONFIG!r})
        def add(id):
            journal.add(cell, Example(str(id), {{"acc": 1.0}}, "x" * 3000, "y", 7, 0.125, 8, 3, [1] * ENTROPY_BINS))
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(code)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


class JournalTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.directory = Path(folder.name) / "run"
        self.file = self.directory / "journal.sqlite"

    def begun(self, **options):
        journal = Journal(self.directory, **options)
        self.addCleanup(journal.close)
        journal.begin(CELL, CONFIG)
        return journal

    def ids(self):
        with Journal(self.directory, read_only=True) as journal:
            return [example.id for example in journal.examples(CELL)]

    def integrity(self):
        connection = sqlite3.connect(self.file)
        self.addCleanup(connection.close)
        return connection.execute("PRAGMA integrity_check").fetchone()[0]

    def test_what_is_added_comes_back(self):
        with self.begun() as journal:
            journal.add(CELL, example(1))
        with Journal(self.directory, read_only=True) as journal:
            self.assertEqual(journal.cells(), [CELL])
            self.assertEqual(journal.config(CELL), CONFIG)
            self.assertEqual(journal.finished(CELL), {"1"})
            self.assertEqual(journal.examples(CELL), [example(1)])

    def test_examples_come_by_id_however_they_were_added(self):
        journal = self.begun()
        for id in ("b", "10", "9", "a", "100", "007"):
            journal.add(CELL, example(id))
        self.assertEqual(self.ids(), ["007", "9", "10", "100", "a", "b"])

    def test_cells_are_apart(self):
        journal = self.begun()
        others = [replace(CELL, **{name: value}) for name, value in
                  (("model", "m"), ("task", "t"), ("method", "n"), ("seed", 1), ("seed", 2**40))]
        for other in others:
            journal.begin(other, {})
        journal.add(others[0], example(1))
        self.assertEqual(journal.finished(CELL), set())
        self.assertEqual(set(journal.cells()), {CELL, *others})

    def test_an_id_twice_is_refused(self):
        journal = self.begun()
        journal.add(CELL, example(1))
        with self.assertRaisesRegex(JournalError, "example 1 of model / task / method / seed 0 is there already"):
            journal.add(CELL, example(1, "another answer"))
        self.assertEqual(journal.examples(CELL), [example(1)])

    def test_a_value_that_is_none_is_refused(self):
        journal = self.begun()
        for wrong in ({"seconds": float("nan")}, {"answer": None}):
            with self.assertRaisesRegex(JournalError, "is refused .*NOT NULL"):
                journal.add(CELL, replace(example(1), **wrong))
        with self.assertRaisesRegex(JournalError, f"has 3 entropy bins: give {ENTROPY_BINS}"):
            journal.add(CELL, replace(example(1), entropies=[1, 2, 3]))
        self.assertEqual(self.ids(), [])

    def test_a_cell_that_was_not_begun(self):
        journal = self.begun()
        other = replace(CELL, seed=1)
        for use in (journal.finished, journal.config, journal.examples, lambda cell: journal.add(cell, example(1))):
            with self.assertRaisesRegex(JournalError, "seed 1 is not there: begin"):
                use(other)

    def test_another_config_is_refused_with_what_differs(self):
        journal = self.begun()
        journal.begin(CELL, CONFIG)
        with self.assertRaises(JournalError) as caught:
            journal.begin(CELL, {"options": {"threshold": 2.0, "beta": 0.5}, "model_sha256": "ab"})
        self.assertIn("model_sha256: absent there, ab now; n_examples: 3 there, absent now; "
                      "options.threshold: 1.0 there, 2.0 now", str(caught.exception))
        self.assertNotIn("beta", str(caught.exception))
        self.assertEqual(journal.config(CELL), CONFIG)

    def test_the_number_of_examples_grows(self):
        journal = self.begun()
        journal.add(CELL, example(1))
        for asked, stands in ((5, 5), (2, 5), (5, 5)):
            journal.begin(CELL, {**CONFIG, "n_examples": asked})
            self.assertEqual(journal.config(CELL), {**CONFIG, "n_examples": stands})
        with self.assertRaises(JournalError) as caught:
            journal.begin(CELL, {**CONFIG, "n_examples": 9, "protocol": "other"})
        self.assertIn("(protocol: absent there, other now)", str(caught.exception))
        self.assertEqual(journal.config(CELL)["n_examples"], 5)
        self.assertEqual(self.ids(), ["1"])

    def test_a_cell_without_examples_takes_another_config(self):
        journal = self.begun()
        for config in ({**CONFIG, "llama_args": ["--no-such-flag"]}, CONFIG):
            journal.begin_anew(CELL, config)
            self.assertEqual(journal.config(CELL), config)
        journal.begin_anew(replace(CELL, seed=1), {})
        journal.add(CELL, example(1))
        journal.begin_anew(CELL, CONFIG)
        with self.assertRaisesRegex(JournalError, "another configuration"):
            journal.begin_anew(CELL, {})
        self.assertEqual([journal.config(cell) for cell in journal.cells()], [CONFIG, {}])

    def test_one_writer_and_any_readers(self):
        writer = self.begun()
        code = f"""
            from harp.evaluation.journal import Journal, JournalError
            with Journal({str(self.directory)!r}, read_only=True) as journal: print(len(journal.cells()))
            try: Journal({str(self.directory)!r})
            except JournalError as error: print(error)
        """
        prefix = f"import sys; sys.path.insert(0, {str(SUPPORT)!r}); import evaluation_sources\n"
        program = [sys.executable, "-c", prefix + textwrap.dedent(code)]
        answer = subprocess.run(program, capture_output=True, text=True, check=True)
        self.assertEqual(answer.stdout.splitlines()[0], "1")
        self.assertIn(f"{self.file}: another process is writing to it: wait", answer.stdout)
        writer.add(CELL, example(1))
        writer.close()
        self.begun().add(CELL, example(2))

    def test_a_reader_cannot_write(self):
        self.begun().close()
        with Journal(self.directory, read_only=True) as reader:
            with self.assertRaisesRegex(JournalError, "readonly database: make it writable"):
                reader.add(CELL, example(1))
        self.assertEqual(self.ids(), [])

    def test_no_journal_to_read(self):
        with self.assertRaisesRegex(JournalError, "there is no journal"):
            Journal(self.directory, read_only=True)
        self.assertFalse(self.directory.exists())

    def test_a_file_that_is_no_journal(self):
        self.directory.mkdir()
        for content in (b"notes\n" * 1000, None):
            if content:
                self.file.write_bytes(content)
            else:
                self.file.unlink()
                connection = sqlite3.connect(self.file)
                connection.execute("CREATE TABLE cell (number)")
                connection.close()
            before = self.file.read_bytes()
            for read_only in (True, False):
                with self.subTest(content=content and content[:6], read_only=read_only):
                    with self.assertRaisesRegex(JournalError, "sqlite: .*(not a journal|not a database).*: move the file"):
                        Journal(self.directory, read_only=read_only)
                    self.assertEqual(self.file.read_bytes(), before)

    def test_another_format(self):
        self.begun().close()
        connection = sqlite3.connect(self.file)
        connection.execute("PRAGMA user_version = 2")
        connection.close()
        with self.assertRaisesRegex(JournalError, "has format 2, and this version of harp reads format 1: use"):
            Journal(self.directory)

    def test_a_damaged_record_is_named(self):
        with self.begun() as journal:
            journal.add(CELL, example(1))
        content = self.file.read_bytes()
        for damaged in (b'{"acc"', b"[1, 1, "):  # of the metrics, of the entropies
            self.assertTrue(damaged in content)
            self.file.write_bytes(content.replace(damaged, b"#" * len(damaged)))
            with self.subTest(damaged), Journal(self.directory, read_only=True) as journal, \
                    self.assertRaisesRegex(JournalError, "sqlite: .*a record is damaged: move the file"):
                journal.examples(CELL)

    def test_a_directory_that_cannot_be(self):
        self.directory.write_text("a file")
        with self.assertRaisesRegex(JournalError, "use another directory"):
            Journal(self.directory)

    def test_killed_before_it_was_filled(self):
        self.directory.mkdir()
        self.file.touch()
        self.begun().add(CELL, example(1))
        self.assertEqual(self.ids(), ["1"])

    def test_disk_full(self):
        journal = self.begun()
        pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
        journal._database.execute(f"PRAGMA max_page_count = {pages + 2}")
        with self.assertRaisesRegex(JournalError, "add example .*database or disk is full: free space"):
            for id in range(100):
                journal.add(CELL, example(id, "x" * 1000))
        kept = [str(before) for before in range(id)]
        self.assertGreater(id, 0)
        self.assertEqual(self.ids(), kept)
        self.assertEqual(self.integrity(), "ok")
        journal._database.execute("PRAGMA max_page_count = 1000")
        journal.add(CELL, example(id))

    def test_writing_fails(self):
        process = child(self.directory, """
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            try:
                for id in range(100):
                    add(id)
                    print(id)
            except JournalError as error:
                print(error)
                print(len(journal.finished(cell)))
        """)
        *ids, message, kept = process.communicate()[0].splitlines()
        self.assertRegex(message, "journal.sqlite: cannot add example .*: free space or mend the disk")
        self.assertGreater(len(ids), 3)
        self.assertEqual(kept, str(len(ids)))
        self.assertEqual(self.ids(), ids)
        self.assertEqual(self.integrity(), "ok")

    def test_kill_9(self):
        printed = []
        for start in range(0, 10_000_000, 1_000_000):
            process = child(self.directory, f"""
                print("ready", flush=True)
                for id in range({start}, {start} + 1_000_000):
                    add(id)
                    print(id, flush=True)
            """)
            self.assertEqual(process.stdout.readline(), "ready\n")
            time.sleep(random.uniform(0, 0.15))
            os.kill(process.pid, signal.SIGKILL)
            printed += process.communicate()[0].splitlines()

            ids = self.ids()
            self.assertEqual(len(ids), len(set(ids)))
            self.assertEqual(set(printed) - set(ids), set(), "add() returned, and the example is lost")
            self.assertLessEqual(len(ids) - len(printed), start // 1_000_000 + 1, "more than one untold for each kill")
            self.assertEqual(self.integrity(), "ok")
        self.assertGreater(len(printed), 10)


if __name__ == "__main__":
    unittest.main()
