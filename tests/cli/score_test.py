#!/usr/bin/env python3
"""harp score, and its --sweep: each row is what scoring with its options alone gives."""

import itertools
import json
import re
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, INTERRUPTED, STORY, USAGE, harp
from programs import SMOL, TINY, needs_smol, needs_tiny


@needs_tiny
class Score(CliTest):
    TEXT = "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park. " * 4

    def score(self, *flags):
        return json.loads(self.assert_ok(harp("score", "-m", str(TINY), "-p", self.TEXT, "--json", *flags)).out)

    def test_score(self):
        data = self.score("--harp-threshold", "0.5")
        self.assertTrue(data["complete"])
        self.assertGreater(data["tokens"], 50)
        self.assertTrue(0 < data["hesitations"] <= data["tokens"])
        self.assertAlmostEqual(data["difference"]["mean"], data["harp"]["mean"] - data["vanilla"]["mean"], places=6)
        for name in ["harp", "vanilla", "difference"]:
            self.assertGreater(data[name]["standard_error"], 0)
        self.assertEqual(data["vanilla"], self.score("--harp-threshold", "0.5")["vanilla"])

    def test_score_without_hesitation_is_vanilla(self):
        never = self.score("--harp-threshold", "inf")
        self.assertEqual((never["hesitations"], never["difference"]["mean"]), (0, 0))
        off = self.score("--harp-off")
        self.assertNotIn("harp", off)
        self.assertAlmostEqual(off["vanilla"]["mean"], never["vanilla"]["mean"], places=5)

    def test_score_limits(self):
        self.assertLessEqual(self.score("--max-tokens", "20")["tokens"], 20)
        self.assertEqual(self.score("--window", "16")["window"], 16)

    def test_score_of_one_token_has_no_error_bar(self):
        data = self.score("--max-tokens", "2")
        self.assertEqual((data["tokens"], data["vanilla"]["standard_error"]), (1, None))

    def test_one_token_in_words(self):
        for flags in ([], ["--sweep", "beta=0.5"]):
            text = self.assert_ok(harp("score", "-m", str(TINY), "-p", self.TEXT, "--max-tokens", "2", "--harp-threshold", "0", *flags)).out
            self.assertNotIn("nan", text)
            self.assertIn("± unknown", text)

    def test_a_window_is_not_longer_than_the_texts_the_model_was_trained_with(self):
        self.assertEqual(self.score()["window"], 512)
        self.assertEqual(self.score("-c", "1024")["window"], 1024)
        self.assertEqual(self.score("-c", "1024", "--window", "700")["window"], 700)

    def test_a_window_fits_the_room_of_the_second_pass(self):
        small = ["--harp-view", "guidance", "--harp-beta", "2", "--harp-n-ctx-twin", "24"]
        self.assertEqual(self.score(*small)["harp"]["mean"], self.score(*small[:4], "--window", "24")["harp"]["mean"])
        self.assertLess(self.score(*small, "--harp-negative-prompt", "A dog")["window"], 24)
        self.assert_fault(harp("score", "-m", str(TINY), "-p", self.TEXT * 9, *small, "--window", "26"), USAGE, "has room for 25", "n_ctx_twin")

    @needs_smol
    def test_interrupted_keeps_the_windows_that_are_complete(self):
        terminal = self.terminal("score", "-m", str(SMOL), "--window", "64", "-b", "32", "-p", self.TEXT * 60, "--json", streams=["stderr"])
        terminal.wait_for(r"\n?[1-9]\d\d of \d+ tokens")
        terminal.process.send_signal(signal.SIGINT)
        result = terminal.finish()
        self.assertEqual(result.code, INTERRUPTED, f"{result}\n{terminal.text[-500:]}")
        data = json.loads(result.out)
        self.assertFalse(data["complete"])
        self.assertGreater(data["tokens"], 60)
        self.assertIn("(interrupted)", terminal.text)

    def test_score_text(self):
        result = self.assert_ok(harp("score", "-m", str(TINY), stdin=self.TEXT.encode()))
        for word in ["vanilla", "HARP", "difference", "perplexity"]:
            self.assertIn(word, result.out)


@needs_tiny
class Sweep(CliTest):
    def score(self, *flags):
        return json.loads(self.assert_ok(harp("score", "-m", str(TINY), "-p", STORY * 3, "--json", *flags)).out)

    def assert_same_mean(self, a, b):
        for key in ["mean", "standard_error"]:
            self.assertAlmostEqual(a[key], b[key], delta=1e-5)

    def test_bad_flags(self):
        bad = [
            (["--sweep", "threshold"], ["--sweep", "threshold", "NAME=VALUE"]),
            (["--sweep", "=1"], ["--sweep", "gate, threshold, beta"]),
            (["--sweep", "thres=1"], ["--sweep", "thres", "gate, threshold, beta"]),
            (["--sweep", "schedule=lazy"], ["--sweep", "schedule", "gate, threshold, beta"]),
            (["--sweep", "threshold=1,,2"], ["--sweep", "threshold", "''", ">= 0"]),
            (["--sweep", "threshold=1,-2"], ["--sweep", "threshold", "-2", ">= 0"]),
            (["--sweep", "beta=0,9"], ["--sweep", "beta", "9", "0..8"]),
            (["--sweep", "perturbation=dropout,uniform", "--sweep", "strength=0"], ["--sweep", "strength", "uniform > 0"]),
            (["--sweep", "beta=0", "--sweep", "beta=1"], ["--sweep", "beta", "twice"]),
            (["--sweep", "beta=0", "--harp-beta", "0.5"], ["--sweep", "--harp-beta"]),
            (["--sweep", "seed=" + ",".join(map(str, range(67))), "--sweep", "beta=0,0.5,1"], ["--sweep", "201", "1..200"]),
            (["--sweep", "beta=0", "--harp-off"], ["--harp-off", "sweep"]),
        ]
        for flags, names in bad:
            with self.subTest(flags=flags):  # refused before the model is loaded, which does not exist
                self.assert_fault(harp("score", "-m", "nowhere.gguf", "-p", "x y z", *flags), USAGE, *names)

    def test_each_row_is_what_score_says(self):
        sweeps = [
            {"threshold": [0, 1], "beta": [0, 0.5, 0.75, 1], "strength": [0.1, 0.3]},
            {"reframings": [1, 2], "redraw": [0, 1], "threshold": ["inf", 0.5]},
            {"seed": [0, 7], "scope": ["all", "generated"]},
            {"perturbation": ["uniform", "gaussian"], "strength": [0.5, 5]},
        ]
        for axes in sweeps:
            flags = [flag for name, values in axes.items() for flag in ("--sweep", f"{name}={','.join(map(str, values))}")]
            data = self.score("--harp-schedule", "lazy", *flags)
            self.assertTrue(data["complete"])
            expected = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
            self.assertEqual([row["options"] for row in data["combinations"]], expected)
            for row in data["combinations"]:
                with self.subTest(options=row["options"]):
                    flags = [flag for name, value in row["options"].items() for flag in (f"--harp-{name}", str(value))]
                    alone = self.score("--harp-schedule", "lazy", *flags)
                    self.assertEqual((data["tokens"], row["hesitations"]), (alone["tokens"], alone["hesitations"]))
                    self.assertAlmostEqual(row["hesitation_share"], alone["hesitations"] / alone["tokens"])
                    self.assert_same_mean(row["harp"], alone["harp"])
                    self.assert_same_mean(row["difference"], alone["difference"])
                    self.assert_same_mean(data["vanilla"], alone["vanilla"])

    def test_betas_share_a_pass_and_vanilla_costs_none(self):
        rows = self.score("--sweep", "threshold=0.5,inf", "--sweep", "beta=0.25,0.5,1")["combinations"]
        self.assertEqual(rows[0]["seconds"], rows[1]["seconds"])
        self.assertGreater(rows[0]["seconds"], 0)
        for row in rows[2:]:
            self.assertEqual((row["seconds"], row["difference"]["mean"]), (0, 0))

    def test_text(self):
        result = self.assert_ok(harp("score", "-m", str(TINY), "-p", STORY, "--sweep", "threshold=0,1", "--sweep", "perturbation=gaussian"))
        lines = result.out.splitlines()
        self.assertEqual(lines[0].split()[:3], ["threshold", "perturbation", "hesitates"])
        self.assertEqual([line.split()[0] for line in lines[1:4]], ["vanilla", "0", "1"])
        self.assertEqual(len({line.rfind(".") for line in lines[1:4]}), 1, result)  # the columns are aligned

    def test_interrupted_keeps_the_rows_that_are_complete(self):
        if not SMOL.is_file():
            self.skipTest(f"no {SMOL}")
        for form in [["--json"], []]:
            with self.subTest(form=form):
                terminal = self.terminal("score", "-m", str(SMOL), "-p", STORY * 8, "-c", "64", "--harp-threshold", "0",
                                         "--sweep", "strength=0.1,0.2,0.3,0.4", *form, streams=["stderr"])
                terminal.wait_for(r"of (\d+) tokens")
                total = 4 * int(re.search(r"of (\d+) tokens", terminal.text)[1])
                terminal.wait_for(rf"of {total} tokens \([3-9]\d %\)")  # past the first of four passes
                terminal.process.send_signal(signal.SIGINT)
                result = terminal.finish()
                self.assertEqual(result.code, INTERRUPTED, result)
                self.assertRegex(terminal.text, "interrupted: only [123] of 4")
                if form:
                    data = json.loads(result.out)
                    self.assertFalse(data["complete"])
                    self.assertTrue(1 <= len(data["combinations"]) < 4, result)
                else:
                    self.assertRegex(result.out, "interrupted: only [123] of 4")


if __name__ == "__main__":
    unittest.main(verbosity=2)
