#!/usr/bin/env python3
"""What identifies a model: contents of all its files, of adapters, and flags; hashes are kept as long as a file does not change."""

import hashlib
import os
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import harp
from harp import _engine, identity

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import SHARED, TINY, needs_tiny

try:
    import lm_eval

    from harp.evaluation.cells import CellSpec
    from harp.evaluation.journal import Cell, Journal, JournalError
    from harp.evaluation.methods import read_method
    from harp.evaluation.runner import config_of
    from harp.lm_eval_model import HarpLM
except ImportError:
    lm_eval = None

MIB = 1 << 20


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.enterContext(mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.folder / "cache")))
        self.addCleanup(identity.sha256_of.cache_clear)

    def write(self, name, content):
        identity.sha256_of.cache_clear()
        (self.folder / name).write_bytes(content)
        return self.folder / name

    if not hasattr(unittest.TestCase, "enterContext"):  # before Python 3.11
        def enterContext(self, manager):
            value = manager.__enter__()
            self.addCleanup(manager.__exit__, None, None, None)
            return value


class Hashes(Folder):
    def test_are_sha256(self):
        for content in (b"", b"abc", bytes(3 * MIB + 1)):
            path = self.write("file", content)
            self.assertEqual(_engine.content_hash(str(path)), hashlib.sha256(content).hexdigest())

    def kept(self):
        return [path for path in (self.folder / "cache").rglob("*") if path.is_file()]

    def test_of_a_large_file_is_kept_until_it_changes(self):
        content = bytes(2 * MIB)
        path = self.write("file", content)
        _engine.content_hash(str(path))
        self.assertEqual(self.kept(), [])
        time.sleep(4)  # needed because a file's change time cannot be set back
        right = hashlib.sha256(content).hexdigest()
        self.assertEqual(_engine.content_hash(str(path)), right)
        [entry] = self.kept()
        state = entry.read_text().splitlines()[0]
        entry.write_text(f"{state}\n{'0' * 64}\n")  # the kept hash is returned
        self.assertEqual(_engine.content_hash(str(path)), "0" * 64)
        before = path.stat()
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time as before
        self.assertEqual(_engine.content_hash(str(path)), hashlib.sha256(content[:-1] + b"x").hexdigest())

    def test_without_a_cache(self):
        path = self.write("file", bytes(2 * MIB))
        for folder in ("/proc/nowhere", "", str(path)):
            with mock.patch.dict(os.environ, XDG_CACHE_HOME=folder, HOME="/proc/nowhere"):
                self.assertEqual(_engine.content_hash(str(path)), hashlib.sha256(bytes(2 * MIB)).hexdigest())

    def test_a_file_that_is_not_there_is_named(self):
        with self.assertRaises(harp.HarpError) as caught:
            identity.sha256_of(self.folder / "nowhere")
        self.assertEqual(caught.exception.code, "io")
        self.assertIn(str(self.folder / "nowhere"), str(caught.exception))

    def test_parts_of_a_split_model(self):
        parts = [str(self.write(f"m-0000{i}-of-00003.gguf", b"%d" % i)) for i in (1, 2, 3)]
        self.assertEqual(_engine.model_files(parts[0]), parts)
        self.assertEqual(list(identity.model_hash(parts[0])), [Path(part).name for part in parts])
        self.assertEqual(_engine.model_files("m.gguf"), ["m.gguf"])

    def test_values_that_are_no_file_names(self):
        for value in ("root ::= " + "a" * 300, "one\ntwo, three\r\nfour", "x" * 200_000, "a\0b", '"open quote, and more'):
            with self.subTest(value[:20]):
                self.assertEqual(identity.named_files([value]), {})

    def test_files_that_flags_name(self):
        names = [str(self.write(name, name.encode())) for name in ("a.gguf", "b.gguf", "c.jinja", "d-00001-of-00001.gguf")]
        flags = ["--lora", f"{names[0]},{names[1]}", "--control-vector-scaled", f"{names[1]}:0.5", "--chat-template-file", names[2],
                 "-md", names[3], "-ngl", "99", "--rope-scale", "2", "", str(self.folder)]
        self.assertEqual(list(identity.named_files(flags)), sorted(names))

    def test_variables_that_change_answers(self):
        said = identity.llama_environment({"LLAMA_ARG_CTX_SIZE": "5", "LLAMA_ARG_THREADS": "3", "HOME": "/", "LLAMA_ARG_LOG_FILE": "x"})
        self.assertEqual(said, {"LLAMA_ARG_CTX_SIZE": "5"})


@needs_tiny
class Models(Folder):
    def test_that_differ_in_a_weight_have_other_fingerprints(self):
        content = TINY.read_bytes()
        for at in (len(content) // 2, len(content) - 4096):
            other = self.write("other.gguf", content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
            self.assertNotEqual(harp.Model(other, n_threads=1).info["fingerprint"], hashlib.sha256(content).hexdigest())
        same = self.write("same.gguf", content)
        self.assertEqual(harp.Model(same, n_threads=1).info["fingerprint"], hashlib.sha256(content).hexdigest())

    @unittest.skipUnless(lm_eval, "no lm-eval")
    def test_name_of_the_request_cache(self):
        template = self.write("template", b"{{ 1 }}")
        names = set()
        for flags, content in ([], b""), (["--chat-template-file", str(template)], b"{{ 1 }}"), \
                (["--chat-template-file", str(template)], b"{{ 2 }}"), (["--rope-scale", "2"], b""):
            self.write("template", content)
            names.add(HarpLM(path=str(TINY), enabled=False, max_length=64, n_threads=1, llama_args=flags).tokenizer_name)
        self.assertEqual(len(names), 4)


@unittest.skipUnless(lm_eval and (SHARED / "lambada/lambada_test.jsonl").is_file(), "no lm-eval, or no shared data")
class Configurations(Folder):
    NAMES = {"model": "m-00001-of-00002.gguf", "second part": "m-00002-of-00002.gguf", "adapter": "lora.gguf", "scaled": "scaled.gguf",
             "vector": "vector.gguf", "draft": "draft-00001-of-00002.gguf", "draft's part": "draft-00002-of-00002.gguf",
             "template": "chat.jinja", "variable": "variable.gguf"}

    def config(self, changed=None):
        files = {what: self.write(name, b"x" if what == changed else b"a") for what, name in self.NAMES.items()}
        flags = ("--lora", str(files["adapter"]), "--lora-scaled", f"{files['scaled']}:0.5", "--control-vector", str(files["vector"]),
                 "-md", str(files["draft"]), "--chat-template-file", str(files["template"]))
        spec = CellSpec(str(files["model"]), "lambada_openai", "lm-eval", read_method("vanilla"), 0, str(SHARED), llama_args=flags)
        with mock.patch.dict(os.environ, LLAMA_ARG_MMPROJ=str(files["variable"])):
            return config_of(spec, 10)

    def test_each_file_counts(self):
        base = self.config()
        self.assertEqual(base, self.config())
        for what in self.NAMES:
            self.assertNotEqual(self.config(what), base, what)

    def test_a_journal_names_what_changed(self):
        cell = Cell("m", "t", "vanilla", 0)
        with Journal(self.folder / "run") as journal:
            journal.begin(cell, self.config())
            journal.begin(cell, self.config())
            for what in ("second part", "adapter"):
                with self.assertRaises(JournalError) as caught:
                    journal.begin(cell, self.config(what))
                self.assertIn(self.NAMES[what], str(caught.exception))

    def test_of_one_file_is_what_it_was(self):
        """Journals of earlier versions can be continued."""
        model = self.write("one.gguf", b"a")
        config = config_of(CellSpec(str(model), "lambada_openai", "lm-eval", read_method("vanilla"), 0, str(SHARED)), 10)
        self.assertEqual(config["model_sha256"], hashlib.sha256(b"a").hexdigest())
        self.assertEqual(set(config) & {"files_sha256", "environment"}, set())


if __name__ == "__main__":
    unittest.main(verbosity=2)
