#!/usr/bin/env python3
"""Prompts from all sources: empty, too long, not text, or looking like flags."""

import json
import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, FAILURE, STORY, USAGE, generate, harp
from programs import TINY, needs_tiny


@needs_tiny
class PromptFaults(CliTest):
    def test_empty(self):
        for prompt in ["", " \n\t"]:
            with self.subTest(prompt=prompt):
                self.assert_fault(generate(prompt=prompt), USAGE, "prompt", "empty")
        self.assert_fault(harp("generate", "-m", str(TINY), stdin=b""), USAGE, "prompt", "empty")

    def test_longer_than_context(self):
        for command in ["generate", "compare"]:
            with self.subTest(command=command):
                result = harp(command, "-m", str(TINY), "-c", "256", "-p", "Once upon a time " * 200)
                self.assert_fault(result, USAGE, "prompt", "256", "-c")

    def test_invalid_utf8(self):
        for bad, hexadecimal in [(b"\xff", "0xFF"), (b"\xc0\xaf", "0xC0"), (b"\xed\xa0\x80", "0xED"), (b"\xe2\x82", "0xE2")]:
            with self.subTest(bad=bad):
                result = harp("generate", "-m", str(TINY), "-p", os.fsdecode(b"abc" + bad))
                self.assert_fault(result, USAGE, "UTF-8", hexadecimal, "offset 3")
                result = harp("generate", "-m", str(TINY), stdin=b"abc" + bad)
                self.assert_fault(result, USAGE, "UTF-8", hexadecimal, "offset 3")

    def test_prompt_file_missing(self):
        result = harp("generate", "-m", str(TINY), "-f", str(self.folder / "no.txt"))
        self.assertIn(result.code, (FAILURE, USAGE), result)
        self.assert_fault(result, result.code, "no.txt")

    def test_prompt_that_looks_like_a_flag(self):
        for prompt in ["--json", "--help", "-h", "--harp-bta", "-f", "-m", "-hf", "--harp-off=1"]:
            with self.subTest(prompt=prompt):
                data = json.loads(self.assert_ok(generate("-n", "2", "--json", prompt=prompt)).out)
                self.assertGreater(data["prompt"]["tokens"], 0)
                self.assertTrue(data["harp"]["enabled"])

    def test_prompt_sources_agree(self):
        path = self.folder / "prompt.txt"
        path.write_text("Once upon a time")
        common = ["generate", "-m", str(TINY), "-n", "10", "--seed", "3", "--harp-schedule", "lazy"]
        texts = {self.assert_ok(r).out for r in (harp(*common, "-p", "Once upon a time"), harp(*common, "-f", str(path)),
                                                 harp(*common, stdin=b"Once upon a time"))}
        self.assertEqual(len(texts), 1, texts)

    def test_the_line_end_of_a_text_is_no_part_of_the_prompt(self):
        flags = ["generate", "-m", str(TINY), "-n", "2", "--json"]
        n_tokens = json.loads(self.assert_ok(harp(*flags, "-p", "Once upon a time")).out)["prompt"]["tokens"]
        for end, more in [(b"", 0), (b"\n", 0), (b"\r\n", 0), (b"\n\n", 1)]:
            path = self.folder / "prompt.txt"
            path.write_bytes(b"Once upon a time" + end)
            for result in [harp(*flags, "-f", str(path)), harp(*flags, stdin=path.read_bytes())]:
                with self.subTest(end=end):
                    self.assertEqual(json.loads(self.assert_ok(result).out)["prompt"]["tokens"], n_tokens + more)

    def test_a_file_that_begins_with_a_byte_order_mark(self):
        path = self.folder / "prompt.txt"
        path.write_text("Once upon a time", encoding="utf-8-sig")
        flags = ["generate", "-m", str(TINY), "-n", "2", "--json"]
        for result in [harp(*flags, "-f", str(path)), harp(*flags, stdin=path.read_bytes())]:
            n = json.loads(self.assert_ok(result).out)["prompt"]["tokens"]
            self.assertEqual(n, json.loads(self.assert_ok(generate("-n", "2", "--json")).out)["prompt"]["tokens"])

    def test_negative_prompt_longer_than_the_context(self):
        flags = ["-m", str(TINY), "-c", "256", "--harp-negative-prompt", "cat dog " * 200]
        for command, most, own in [("generate", 255, []), ("compare", 255, []), ("chat", 255, []), ("score", 254, []),
                                   ("score", 254, ["--sweep", "view=last,guidance"]), ("score", 254, ["--window", "4"]),
                                   ("calibrate", 255, ["--views", "guidance", "--window", "4"])]:
            with self.subTest(command=command, flags=own):
                view = [] if own[:1] in (["--sweep"], ["--views"]) else ["--harp-view", "guidance"]
                prompt = [] if command == "chat" else ["-p", STORY * (20 if command == "calibrate" else 1)]
                result = harp(command, *flags, *view, *own, *prompt)
                result.err = "".join(line for line in result.err.splitlines(True) if "chat template" not in line)
                self.assert_fault(result, USAGE, "--harp-negative-prompt", "802 tokens", f"allowed: 1..{most} in a context of 256 (-c)")

    def test_no_tokens_asked_for(self):
        result = self.assert_ok(generate("-n", "0"))
        self.assertEqual(result.out, "")
        data = json.loads(self.assert_ok(generate("-n", "0", "--json")).out)
        self.assertEqual((data["text"], data["tokens"], data["stop_reason"]), ("", [], "length"))

    def test_bad_grammar(self):
        self.assert_fault(generate("--grammar", "root ::= ("), USAGE, "grammar")
        self.assert_fault(generate("--json-schema", "{"), USAGE, "json-schema")

    def test_score_of_too_little(self):
        self.assert_fault(harp("score", "-m", str(TINY), "-p", "x y z", "--window", "100000"), USAGE, "window")


if __name__ == "__main__":
    unittest.main(verbosity=2)
