#!/usr/bin/env python3
"""Speculation by n-gram look-up and by a draft model gives the same tokens as the run without."""

import itertools
import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, FAILURE, LOOKUP, USAGE, generate, harp
from programs import MODELS, SMOL, TINY, needs_tiny

MAMBA = MODELS / "random-mamba.gguf"


@needs_tiny
class Speculation(CliTest):
    def same(self, *flags, speculate=LOOKUP, n="120"):
        """The run with speculation, whose tokens must be those of the run without.

        Rows that are decoded together are summed in another order than single rows. With a float32 cache and no flash attention
        the differences are small, but an entropy almost equal to the threshold may be judged either way. The texts are compared
        up to such a step.
        """
        common = ["-n", n, "--json", "-ctk", "f32", "-ctv", "f32", "-fa", "off", *flags]
        with_draft = json.loads(self.assert_ok(generate(*common, *speculate)).out)
        without = json.loads(self.assert_ok(generate(*common)).out)
        self.assertIsNone(without["speculation"])
        same = list(itertools.takewhile(lambda pair: pair[0]["hesitated"] == pair[1]["hesitated"],
                                        zip(with_draft["tokens"], without["tokens"])))
        self.assertEqual([a["id"] for a, _ in same], [b["id"] for _, b in same])
        if len(same) < max(len(with_draft["tokens"]), len(without["tokens"])):
            for run in (with_draft, without):  # IndexError if one is only shorter
                self.assertAlmostEqual(run["tokens"][len(same)]["entropy"], run["harp"]["threshold"], delta=1e-3)
        self.assertGreater(with_draft["speculation"]["drafted"], 0)
        return with_draft["speculation"]

    def test_lookup_gives_the_same_tokens(self):
        for schedule in ["lazy", "fused", "auto"]:
            for redraw in ["0", "3"]:
                with self.subTest(schedule=schedule, redraw=redraw):
                    self.same("--temp", "0", "--harp-schedule", schedule, "--harp-redraw", redraw)
        self.same("--temp", "0", "--harp-scope", "generated")
        self.same("--temp", "0", "--harp-reframings", "2")
        self.assertGreater(self.same("--temp", "0", "--harp-off")["accepted"], 0)

    def test_sampling_gives_the_same_tokens(self):
        # one random number per token, whatever was drafted: the same seed gives the same text, so the distribution is the same
        for seed in range(8):
            self.same("--temp", "0.8", "--seed", str(seed), "--harp-schedule", "lazy")

    def test_draft_model(self):
        draft = ["-md", str(TINY), "--spec-draft-n-max", "4"]
        speculation = self.same("--temp", "0", "--harp-off", speculate=draft)
        self.assertGreater(speculation["accepted"], 0.9 * speculation["drafted"])  # the draft model is the target itself
        # with HARP the draft is right where the target does not hesitate, and often otherwise; it must handle rejections
        speculation = self.same("--temp", "0", speculate=draft)
        self.assertGreater(speculation["accepted"], 0.3 * speculation["drafted"])
        self.assertGreaterEqual(speculation["accepted"] + speculation["batches"], 118)  # of 120: there is a draft in nearly every batch
        self.same("--temp", "0.8", "--seed", "3", speculate=draft)

    def test_to_the_end_of_the_context(self):
        for flags in (["-c", "256", "--ignore-eos"], ["-c", "256", "--ignore-eos", "--harp-off"], ["-b", "3"]):
            self.same("--temp", "0", *flags, n="400")

    def test_trace_has_each_token_once(self):
        trace = self.folder / "t.jsonl"
        result = self.assert_ok(generate("-n", "80", "--temp", "0", "--harp-threshold", "0.8", "--trace", str(trace), *LOOKUP))
        lines = self.assert_whole_json_lines(trace)
        self.assertEqual("".join(line["text"] for line in lines).strip(), result.out.strip())
        for line in lines:
            self.assertEqual(line["entropy"] > 0.8, line["hesitated"], line)
            self.assertEqual(line["token"], line["mixed"][0]["id"])
            self.assertEqual("reframed" in line, line["hesitated"])

    def test_chat_over_several_turns(self):
        turns = "Once upon a time.\nOnce upon a time there was.\n/clear\nOnce upon a time.\n".encode()
        flags = ["chat", "-m", str(TINY), "-n", "60", "--temp", "0", "-c", "512", "-ctk", "f32", "-ctv", "f32"]
        self.assertEqual(self.assert_ok(harp(*flags, *LOOKUP, stdin=turns)).out, self.assert_ok(harp(*flags, stdin=turns)).out)

    def test_summary(self):
        self.assertRegex(self.assert_ok(generate("-n", "60", "--temp", "0", *LOOKUP)).err, r"speculation: \d+ of \d+ drafted")

    def test_faults(self):
        self.assert_fault(generate("-md", str(self.folder / "no.gguf")), USAGE, "draft model", "no such file")
        self.assert_fault(generate("--spec-type", "magic"), USAGE, "--spec-type", "magic")
        for command in ["score", "compare"]:
            self.assert_fault(harp(command, "-m", str(TINY), "-p", "x y z", *LOOKUP), USAGE, "--spec-type")
        if SMOL.is_file():
            self.assert_fault(generate("-md", str(SMOL)), USAGE, "draft model", SMOL.name, "vocab")
        if MAMBA.is_file():
            self.assert_fault(generate(*LOOKUP, model=MAMBA), FAILURE, "recurrent")


if __name__ == "__main__":
    unittest.main(verbosity=2)
