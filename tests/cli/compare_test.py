#!/usr/bin/env python3
"""harp compare and harp info."""

import ctypes
import json
import os
import signal
import struct
import sys
import unicodedata
import unittest
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from adapters import write_adapter
from command_line import CliTest, INTERRUPTED, USAGE, harp
from programs import SMOL, TINY, needs_smol, needs_tiny


def write_control_vector(path):
    writer = gguf.GGUFWriter(path, "controlvector")
    for layer in range(1, 5):
        writer.add_tensor(f"direction.{layer}", np.full(64, 0.5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Openings:
    """Counts how often a file is opened."""

    def __init__(self, path):
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(self.descriptor, os.fsencode(path), 0x20 | 0x10)  # IN_OPEN, IN_CLOSE_NOWRITE

    def count(self):
        try:
            events = struct.iter_unpack("iIII", os.read(self.descriptor, 1 << 16))  # without names
            return sum(mask == 0x20 for _, mask, _, _ in events)
        except BlockingIOError:
            return 0
        finally:
            os.close(self.descriptor)


@needs_tiny
class Compare(CliTest):
    def test_compare(self):
        data = json.loads(self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once upon a time", "-n", "40", "--seed", "3",
                                              "--harp-threshold", "0.5", "--json")).out)
        [compared] = data["sets"]
        for side in [data["vanilla"], compared]:
            self.assertEqual(side["text"], "".join(token["text"] for token in side["tokens"]))
        self.assertFalse(any(token["hesitated"] for token in data["vanilla"]["tokens"]))
        ids = [[token["id"] for token in side["tokens"]] for side in (data["vanilla"], compared)]
        self.assertEqual(compared["first_difference"], next((i for i, (a, b) in enumerate(zip(*ids)) if a != b), None))
        self.assertGreater(compared["cost_ratio"], 0)
        same = json.loads(self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once upon a time", "-n", "40", "--seed", "3",
                                              "--harp-threshold", "inf", "--json")).out)
        self.assertIsNone(same["sets"][0]["first_difference"])

    def test_several_sets(self):
        flags = ["-m", str(TINY), "-p", "Once upon a time", "-n", "20", "--temp", "0", "--harp-threshold", "0.5"]
        sets = ["view=last,view_tokens=4,beta=2", "view=guidance,beta=1.5", "reframings=2"]
        data = json.loads(self.assert_ok(harp("compare", *flags, "--json", *[f"--with={one}" for one in sets])).out)
        self.assertEqual([one["name"] for one in data["sets"]], sets)
        self.assertEqual([one["options"]["view"] for one in data["sets"]], ["last", "guidance", "perturbed"])
        for text, one in zip(sets, data["sets"]):  # each answer is what generate gives with the same options
            self.assertEqual(one["options"]["threshold"], 0.5)
            own = [f"--harp-{option.replace('_', '-')}" for option in text.split(",")]
            alone = json.loads(self.assert_ok(harp("generate", *flags, "--json", *own)).out)
            self.assertEqual(one["text"], alone["text"])
        text = self.assert_ok(harp("compare", *flags, *[f"--with={one}" for one in sets])).out
        for one in sets:
            self.assertIn(f"{one}: ", text)

    def test_more_sets_than_fit_the_terminal(self):
        sets = [flag for seed in range(27) for flag in ("--with", f"seed={seed}")]
        self.assertIn("seed=26", self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once", "-n", "2", *sets)).out)

    @needs_smol
    def test_characters_of_other_widths_than_one(self):
        """Chinese, emoji, accents of their own, tabs and control characters leave the columns where they are."""
        text = "\u4f60\u597d\u4e16\u754c" * 6 + "a\u0301e\u0301\tx\ty \U0001f600\r\x1b[31mz\x07" + "abc" * 9
        grammar = 'root ::= "' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'
        result = self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once", "-n", "200", "--temp", "0", "--grammar", grammar))
        lines = result.out[:result.out.index("\n\n")].split("\n")
        self.assertGreater(len(lines), 4)
        self.assertIn("\u4f60\u597d", lines[2])

        def width(text):
            return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)

        for line in lines:
            self.assertTrue(all(c >= " " and c != "\x7f" for c in line), repr(line))
            border = line.index("|") if "|" in line else line.index("+")
            self.assertEqual((width(line[:border]), width(line)), (width(lines[1][:lines[1].index("+")]), width(lines[1])), repr(line))

    def test_interrupted_keeps_the_answers_before(self):
        terminal = self.terminal("compare", "-m", str(SMOL), "-p", "Tell a long story.", "-n", "30", "--ignore-eos", "--json",
                                 *[f"--with=seed={seed}" for seed in range(60)], streams=["stderr"])
        terminal.wait_for("seed=1: [1-9]")
        terminal.process.send_signal(signal.SIGINT)
        result = terminal.finish()
        self.assertEqual(result.code, INTERRUPTED, f"{result}\n{terminal.text[-500:]}")
        data = json.loads(result.out)
        self.assertFalse(data["complete"])
        self.assertEqual(len(data["vanilla"]["tokens"]), 30)
        self.assertEqual([one["name"] for one in data["sets"]][:2], ["seed=0", "seed=1"])
        self.assertLess(len(data["sets"]), 60)
        self.assertEqual(len(data["sets"][0]["tokens"]), 30)
        self.assertIn(f"interrupted at answer {1 + len(data['sets'])} of 61", terminal.text)

    def test_an_option_twice_in_a_set(self):
        self.assert_fault(harp("compare", "-m", str(TINY), "-p", "x", "--with", "beta=1,gate=ratio,beta=2"), USAGE, "--with", "'beta'", "twice")

    def test_bad_sets(self):
        for text, message in [("beta", "NAME=VALUE"), ("beta=9", "0..8"), ("bta=1", "did you mean"), ("", "--with")]:
            self.assert_fault(harp("compare", "-m", str(TINY), "-p", "x", "--with", text), USAGE, message)
        self.assert_fault(harp("compare", "-m", str(TINY), "-p", "x", "--harp-reframings", "2", "--with", "view=last"), USAGE,
                          "'--with': view=last: option 'reframings': 2", "with view guidance or last 1")

    def test_compare_formats_as_generate_does(self):
        flags = ["-m", str(SMOL), "-p", "Hello.", "-n", "1", "-sys", "You answer in French.", "--harp-off", "--json"]
        if not SMOL.is_file():
            self.skipTest(f"no {SMOL}")
        n_prompt = json.loads(self.assert_ok(harp("generate", *flags)).out)["prompt"]["tokens"]
        flags.remove("--harp-off")
        data = json.loads(self.assert_ok(harp("compare", *flags)).out)
        self.assertEqual(data["prompt"], {"tokens": n_prompt, "format": "chat"})

    def test_both_sides_have_the_adapter(self):
        def texts(*flags):
            data = json.loads(self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once upon a time", "-n", "30", "--temp", "0", "--json",
                                                  *flags)).out)
            return data["vanilla"]["text"], data["sets"][0]["text"]

        adapter = self.folder / "adapter.gguf"
        write_adapter(adapter)
        vanilla = json.loads(self.assert_ok(harp("generate", "-m", str(TINY), "-p", "Once upon a time", "-n", "30", "--temp", "0",
                                                 "--harp-off", "--json", "--lora", str(adapter))).out)["text"]
        plain, adapted = texts(), texts("--lora", str(adapter))
        self.assertNotEqual(adapted[1], plain[1])
        self.assertEqual(adapted[0], vanilla)
        self.assertNotEqual(vanilla, plain[0])

    def test_control_vectors_are_loaded_once(self):
        vector = self.folder / "vector.gguf"
        write_control_vector(vector)
        flags = ["-m", str(TINY), "-p", "Once upon a time", "-n", "30", "--temp", "0", "--json"]
        plain = json.loads(self.assert_ok(harp("compare", *flags)).out)
        openings = Openings(vector)
        steered = json.loads(self.assert_ok(harp("compare", *flags, "--control-vector", str(vector))).out)
        self.assertEqual(openings.count(), 2)  # to check that it is GGUF, and to load it
        self.assertNotEqual(steered["vanilla"]["text"], plain["vanilla"]["text"])
        self.assertNotEqual(steered["sets"][0]["text"], plain["sets"][0]["text"])

    def test_compare_text(self):
        result = self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once", "-n", "10"))
        self.assertIn("vanilla", result.out)
        self.assertIn("tokens/s", result.out)


@needs_tiny
class Info(CliTest):
    def test_info(self):
        data = json.loads(self.assert_ok(harp("info", "-m", str(TINY), "--json", "--harp-beta", "0.25")).out)
        self.assertEqual(data["harp"]["supported"], True)
        self.assertEqual(data["harp"]["options"]["beta"], 0.25)
        self.assertEqual(data["model"]["vocabulary"], 512)
        self.assertIn("self-check", self.assert_ok(harp("info", "-m", str(TINY))).out)


if __name__ == "__main__":
    unittest.main(verbosity=2)
