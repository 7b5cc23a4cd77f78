#!/usr/bin/env python3
"""harp generate --beams: beam search."""

import json
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, LOOKUP, USAGE, generate
from programs import SMOL, needs_smol, needs_tiny


@needs_tiny
class Beams(CliTest):
    def beams(self, *flags):
        return json.loads(self.assert_ok(generate("-n", "24", "--beams", "3", "--n-best", "3", "--json", *flags)).out)

    def test_json(self):
        data = self.beams("--harp-threshold", "0.5")
        scores = [h["score"] for h in data["hypotheses"]]
        self.assertEqual(len(scores), 3)
        self.assertEqual(scores, sorted(scores, reverse=True))
        for h in data["hypotheses"]:
            length = len(h["tokens"])
            self.assertAlmostEqual(h["score"], h["log_probability"] / ((5 + length) / 6) ** 1.2, places=6)
            self.assertEqual(h["text"], "".join(token["text"] for token in h["tokens"]))
        self.assertEqual(data["text"], data["hypotheses"][0]["text"])
        self.assertGreater(data["statistics"]["hesitations"], 0)
        self.assertEqual(data["beam_search"]["beams"], 3)

    def test_schedules_agree_and_off_is_another(self):
        texts = {self.beams("--harp-schedule", schedule)["text"] for schedule in ["lazy", "fused", "auto"]}
        self.assertEqual(len(texts), 1)
        off = self.beams("--harp-off")
        self.assertEqual(off["harp"], {"enabled": False})
        self.assertNotIn(off["text"], texts)
        self.assertEqual(off["hypotheses"], self.beams("--harp-threshold", "inf")["hypotheses"])

    @needs_smol
    def test_goes_on_past_the_end_where_asked(self):
        flags = ["-n", "40", "--beams", "2", "--n-best", "2", "--json", "--ignore-eos"]
        for hypothesis in json.loads(self.assert_ok(generate(*flags, model=SMOL, prompt="Say yes.")).out)["hypotheses"]:
            self.assertEqual((hypothesis["finished"], len(hypothesis["tokens"])), (False, 40))

    def test_text(self):
        result = self.assert_ok(generate("-n", "12", "--beams", "2", "--n-best", "2"))
        self.assertEqual(len(re.findall(r"(?m)^\[[12]\] score -", result.out)), 2, result)
        self.assertIn("length penalty 1.2", result.err)
        self.assertNotIn("[1]", self.assert_ok(generate("-n", "12", "--beams", "2")).out)
        for room, ended in ((["-n", "17"], "length"), ([], "context_full")):
            result = self.assert_ok(generate("--beams", "3", "--harp-scope", "generated", "--harp-n-ctx-twin", "16", "--ignore-eos", *room))
            self.assertIn("17 steps of 3 beams", result.err)
            self.assertIn(f"ended: {ended}", result.err)

    def test_faults(self):
        for flags, names in {
            ("--beams", "0"): ["--beams", "0", "256"],
            ("--beams", "300"): ["--beams", "300"],
            ("--beams", "3", "--length-penalty", "-1"): ["--length-penalty", "-1", "0..100"],
            ("--beams", "3", "--length-penalty", "nan"): ["--length-penalty", "nan", "0..100"],
            ("--beams", "3", "--beam-candidates", "0"): ["--beam-candidates"],
            ("--beams", "3", "--early-stopping", "soon"): ["--early-stopping", "soon", "heuristic"],
            ("--beams", "3", "--n-best", "4"): ["--n-best", "4", "3"],
            ("--beams", "200", "--harp-reframings", "2"): ["256"],
            ("--beams", "3", "--grammar", 'root ::= "a"'): ["--grammar"],
            ("--beams", "3", "--trace", "t.jsonl"): ["--trace"],
            ("--beams", "3", *LOOKUP): ["--beams", "--spec-type"],
            ("--beams", "3", "-n", "0"): ["-n"],
            ("--beams", "3", "-r", "END"): ["--reverse-prompt"],
            ("--beams", "3", "-c", "256", "-n", "200"): ["-c", "256"],
            ("--beams", "3", "--harp-scope", "generated", "--harp-n-ctx-twin", "16", "-n", "18"): ["room for 17 each", "n_ctx_twin"],
        }.items():
            with self.subTest(flags=flags):
                self.assert_fault(generate(*flags), USAGE, *names)


if __name__ == "__main__":
    unittest.main(verbosity=2)
