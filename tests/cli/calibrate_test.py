#!/usr/bin/env python3
"""harp calibrate: a threshold, a grid that agrees with harp score, a command that works."""

import json
import re
import shlex
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, INTERRUPTED, STORY, USAGE, generate, harp
from programs import SMOL, TINY, needs_tiny


@needs_tiny
class Calibrate(CliTest):
    def calibrate(self, *flags, text=STORY * 3):
        return json.loads(self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", text, "--json", *flags)).out)

    def test_bad_flags(self):
        bad = [
            (["--target-share", "1.5"], ["--target-share", "1.5", "0..1"]),
            (["--target-share", "nan"], ["--target-share", "nan", "0..1"]),
            (["--target-share", "x"], ["--target-share", "x", "0..1"]),
            (["--target-cost", "0.9"], ["--target-cost", "0.9", "1..100"]),
            (["--target-cost", "inf"], ["--target-cost", "inf", "1..100"]),
            (["--strengths", "0.1,x"], ["--strengths", "strength", "'x'", "dropout 0..1"]),
            (["--strengths", "0.1,1.5"], ["--strengths", "strength", "1.5", "dropout 0..1"]),
            (["--betas", "0.5,-1"], ["--betas", "beta", "-1", "0..1"]),
            (["--strengths", "0.1," * 100 + "0.1"], ["--strengths", "202", "1..200"]),
            (["--generate", "0"], ["--generate", "0"]),
            (["--generate", "9", "--betas", "0.5"], ["--generate", "--betas"]),
            (["--generate", "9", "--strengths", "0.5"], ["--generate", "--strengths"]),
            (["--generate", "9", "--window", "64"], ["--generate", "--window"]),
            (["--format", "raw"], ["--generate", "--format"]),
            (["--harp-threshold", "2"], ["--harp-threshold"]),
            (["--harp-strength", "0.1"], ["--harp-strength", "--strengths"]),
            (["--harp-beta", "0.1"], ["--harp-beta", "--betas"]),
            (["--harp-off"], ["--harp-off"]),
        ]
        for flags, names in bad:
            with self.subTest(flags=flags):
                self.assert_fault(harp("calibrate", "-m", "nowhere.gguf", "-p", "x y z", *flags), USAGE, *names)
        self.assert_fault(harp("calibrate", "-m", str(TINY), "-p", STORY, "--window", "100000"), USAGE, "window", "2..")

    def test_json(self):
        data = self.calibrate("--target-share", "0.3", "--strengths", "0.1,0.3", "--betas", "0,0.5,1", "--harp-seed", "7")
        self.assertEqual((data["source"], data["target"], data["prompt"]), ("given text", {"share": 0.3}, None))
        bins = data["entropy"]["histogram"]
        self.assertEqual(sum(b["count"] for b in bins), data["steps"])
        self.assertAlmostEqual(sum(b["share"] for b in bins), 1)
        self.assertEqual([b["begin"] for b in bins[1:]], [b["end"] for b in bins[:-1]])
        quantiles = list(data["entropy"]["quantiles"].values())
        self.assertEqual(quantiles, sorted(quantiles))
        self.assertLessEqual(abs(data["share"] - 0.3), 0.5 / data["steps"])
        expected = [{"strength": s, "beta": b} for s in (0.1, 0.3) for b in (0, 0.5, 1)]
        self.assertEqual([row["options"] for row in data["grid"]], expected)
        for row in data["grid"]:
            self.assertAlmostEqual(row["hesitation_share"], data["share"])
        self.assertEqual(data["recommended"]["seed"], 7)
        self.assertEqual(data["recommended"]["threshold"], data["threshold"])
        best = min(data["grid"], key=lambda row: row["difference"]["mean"])
        self.assertEqual(data["helps"], any(r["difference"]["mean"] + 2 * r["difference"]["standard_error"] < 0 for r in data["grid"]))
        if not data["helps"]:
            self.assertEqual(sorted(data["recommended"]), ["seed", "threshold"])
        self.assertLessEqual(best["difference"]["mean"], 0)  # beta 1 is there
        for key in ["model", "build", "window", "seconds", "vanilla", "harp_options"]:
            self.assertIn(key, data)

    def test_grid_agrees_with_score(self):
        for extra in [[], ["--harp-reframings", "2", "--harp-perturbation", "gaussian"], ["--harp-redraw", "3"]]:
            flags = ["--harp-schedule", "lazy", "--window", "50", "--max-tokens", "120", *extra]
            data = self.calibrate("--target-share", "0.4", "--strengths", "0.1,0.4", "--betas", "0.25,0.75", *flags)
            for row in data["grid"]:
                with self.subTest(extra=extra, options=row["options"]):
                    alone = json.loads(self.assert_ok(harp(
                        "score", "-m", str(TINY), "-p", STORY * 3, "--json", *flags, "--harp-threshold", str(data["threshold"]),
                        "--harp-strength", str(row["options"]["strength"]), "--harp-beta", str(row["options"]["beta"]))).out)
                    self.assertEqual((data["steps"], row["hesitations"]), (alone["tokens"], alone["hesitations"]))
                    for key in ["harp", "difference"]:
                        for figure in ["mean", "standard_error"]:
                            self.assertAlmostEqual(row[key][figure], alone[key][figure], delta=1e-5)
                    self.assertAlmostEqual(data["vanilla"]["mean"], alone["vanilla"]["mean"], delta=1e-5)

    def test_shares_at_the_ends(self):
        never = self.calibrate("--target-share", "0")
        self.assertEqual((never["threshold"], never["share"], never["grid"]), ("inf", 0, None))
        always = self.calibrate("--target-share", "1", "--no-grid")
        self.assertEqual((always["share"], always["grid"], always["helps"]), (1, None, None))

    def test_generated_answer(self):
        flags = ["--seed", "3", "--temp", "0.8"]
        data = self.calibrate("--generate", "60", "--ignore-eos", "--target-share", "0.25", *flags, text="Once upon a time")
        self.assertEqual((data["source"], data["steps"], data["grid"], data["vanilla"]), ("generated answer", 60, None, None))
        answer = json.loads(self.assert_ok(generate("-n", "60", "--ignore-eos", "--harp-off", "--json", *flags)).out)
        entropies = [token["entropy"] for token in answer["tokens"]]
        self.assertAlmostEqual(data["entropy"]["mean"], sum(entropies) / 60, places=4)
        self.assertEqual(sum(h > data["threshold"] for h in entropies), round(data["share"] * 60))
        self.assertEqual(data["share"], 0.25)

    def test_budget(self):
        data = self.calibrate("--target-cost", "100", "--target-share", "0.3", "--no-grid")  # more than any batch of two costs
        self.assertEqual((data["target"]["share"], data["target"]["cost"]), (0.3, 100))
        self.assertGreater(data["target"]["predicted_cost"], 0)
        self.assertEqual([batch["rows"] for batch in data["target"]["batches"]], [1, 2, 4, 8, 16, 32])
        self.assertEqual(self.calibrate("--target-cost", "100", "--no-grid")["target"]["share"], 1)

    def test_text_ends_with_a_command_that_works(self):
        for flags in [["--betas", "0.5"], ["--no-grid", "--harp-redraw", "2"], ["--generate", "30", "--seed", "1"]]:
            with self.subTest(flags=flags):
                result = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", STORY, *flags))
                self.assertNotIn("\033", result.out + result.err)
                self.assertIn("generated" if "--generate" in flags else "given text", result.out)
                self.assertEqual(result.out.count("◄ threshold"), 1)
                self.assertLessEqual(max(len(line) for line in result.out.splitlines() if "█" in line), 80)
                command = shlex.split(result.out.splitlines()[-1])
                self.assertEqual(command[:2], ["harp", "generate"])
                self.assert_ok(harp(*command[1:], "-p", "Once", "-n", "3"))

    def test_says_whether_it_helps(self):
        for text, helps in {"zq xv kj wq pf gh zz xk qj vb " * 4: True, STORY: False}.items():  # noise loses by the model's certainty
            with self.subTest(text=text):
                flags = ["--target-share", "0.9", "--strengths", "0.6", "--betas", "0.5,0.75"]
                data = self.calibrate(*flags, text=text)
                self.assertEqual(data["helps"], helps)
                result = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", text, *flags))
                if helps:
                    best = min(data["grid"], key=lambda row: row["difference"]["mean"])
                    self.assertEqual(data["recommended"], {"threshold": data["threshold"], "strength": 0.6,
                                                           **({"beta": 0.75} if best["options"]["beta"] == 0.75 else {})})
                    self.assertIn("--harp-strength 0.6", result.out.splitlines()[-1])
                    self.assertIn("best of 2 tries", result.out)
                else:
                    self.assertEqual(list(data["recommended"]), ["threshold"])
                    self.assertIn("None of these 2", result.out)

    def test_model_path_is_quoted(self):
        path = self.folder / "a model's $path.gguf"
        path.symlink_to(TINY)
        result = self.assert_ok(harp("calibrate", "-m", str(path), "-p", STORY, "--no-grid"))
        self.assertEqual(shlex.split(result.out.splitlines()[-1])[3], str(path))

    def test_interrupt(self):
        if not SMOL.is_file():
            self.skipTest(f"no {SMOL}")
        cases = {r"\d\d %\)": [],  # reading the text
                 r"of %d tokens \([3-9]\d": ["--strengths", "0.1,0.2,0.3"],  # in the grid
                 r"answering: \d\d": ["--generate", "3000", "--ignore-eos"]}
        for pattern, flags in cases.items():
            with self.subTest(flags=flags):
                terminal = self.terminal("calibrate", "-m", str(SMOL), "-p", STORY * 8, "-c", "64" if "--generate" not in flags else "4096",
                                         "--json", *flags, streams=["stderr"])
                if "%d" in pattern:
                    terminal.wait_for(r"of \d+ tokens")
                    pattern %= 3 * int(re.search(r"of (\d+) tokens", terminal.text)[1])
                terminal.wait_for(pattern)
                terminal.process.send_signal(signal.SIGINT)
                result = terminal.finish()
                self.assertEqual((result.code, result.out), (INTERRUPTED, ""), result)
                self.assertIn("interrupted", terminal.text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
