#!/usr/bin/env python3
"""harp calibrate: chooses a second look on one half of the examples and checks it on the other; and a threshold for a target."""

import concurrent.futures
import json
import os
import re
import shlex
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, FAILURE, INTERRUPTED, STORY, USAGE, generate, harp
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
            (["--views", "last:0"], ["--views", "view_tokens", "0"]),
            (["--views", "masked,sideways"], ["--views", "sideways"]),
            (["--views", "guidance:3"], ["--views", "guidance:3"]),
            (["--views", "last,perturbed:2"], ["'--views': perturbed:2: option 'strength': 2", "dropout 0..1"]),
            (["--views", "last:5", "--harp-reframings", "2"], ["'--views': last:5: option 'reframings': 2"]),
            (["--thresholds", "x"], ["--thresholds", "threshold", "'x'"]),
            (["--betas", "0.5,-1"], ["--betas", "beta", "-1", "0..8"]),
            (["--gates", "entropy,sideways"], ["--gates", "gate", "sideways", "entropy, ratio"]),
            (["--gates", "ratio", "--ratio-thresholds", "-1"], ["--ratio-thresholds", "threshold", "-1"]),
            (["--harp-gate", "ratio"], ["--harp-gate", "--gates"]),
            (["--harp-negative-prompt", "x", "--views", "last"], ["--harp-negative-prompt", "guidance"]),
            (["--harp-negative-prompt", "x", "--target-share", "0.2"], ["--harp-negative-prompt", "target"]),
            (["--betas", "1"], ["0 sets", "1..1000"]),
            (["--plausibilities", "2"], ["--plausibilities", "plausibility", "2", "0..1"]),
            (["--metric", "speed"], ["--metric"]),
            (["--examples", "x.jsonl"], ["--examples", "-p"]),
            (["--temp", "0"], ["--temp", "no effect without --generate"]),
            (["-sys", "x", "--target-share", "0.2"], ["-sys", "no effect without --generate"]),
            (["--chat-template", "chatml"], ["--chat-template", "no effect without --generate"]),
            (["--target-share", "0.2", "--betas", "2"], ["--target-share", "--betas"]),
            (["--harp-view", "last"], ["--harp-view", "--views"]),
            (["--generate", "0"], ["--generate", "0"]),
            (["--generate", "9", "--betas", "0.5"], ["--generate", "--betas"]),
            (["--generate", "9", "--window", "64"], ["--generate", "--window"]),
            (["--format", "raw"], ["--generate", "--format"]),
            (["--harp-threshold", "2"], ["--harp-threshold"]),
            (["--harp-strength", "0.1"], ["--harp-strength", "--views"]),
            (["--harp-beta", "0.1"], ["--harp-beta", "--betas"]),
            (["--harp-off"], ["--harp-off"]),
        ]
        for flags, names in bad:
            with self.subTest(flags=flags):
                self.assert_fault(harp("calibrate", "-m", "nowhere.gguf", "-p", "x y z", *flags), USAGE, *names)
        self.assert_fault(harp("calibrate", "-m", str(TINY), "-p", STORY, "--window", "100000", "--target-share", "0.2"), USAGE,
                          "window", "2..")

    def test_a_share_of_one_step_is_not_certain(self):
        text = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", "a", "--target-share", "1")).out
        self.assertRegex(text, r"100\.0 % of these steps are above it .* ± [1-9]\d\.\d as a sample of 1 steps")
        self.assertIn("± 0.0", self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", "a", "--target-share", "0")).out)  # never is certain

    def test_target(self):
        data = self.calibrate("--target-share", "0.3", "--harp-seed", "7")
        self.assertEqual((data["source"], data["target"], data["prompt"]), ("given text", {"share": 0.3}, None))
        bins = data["entropy"]["histogram"]
        self.assertEqual(sum(b["count"] for b in bins), data["steps"])
        self.assertAlmostEqual(sum(b["share"] for b in bins), 1)
        self.assertEqual([b["begin"] for b in bins[1:]], [b["end"] for b in bins[:-1]])
        quantiles = list(data["entropy"]["quantiles"].values())
        self.assertEqual(quantiles, sorted(quantiles))
        self.assertLessEqual(abs(data["share"] - 0.3), 0.5 / data["steps"])
        self.assertEqual(data["recommended"], {"seed": 7, "threshold": data["threshold"]})
        for key in ["model", "build", "window", "seconds", "vanilla", "harp_options"]:
            self.assertIn(key, data)

    def test_target_of_the_gate_ratio(self):
        data = self.calibrate("--target-share", "0.3", "--harp-gate", "ratio")
        self.assertNotIn("entropy", data)
        self.assertLessEqual(data["ratio"]["histogram"][-1]["begin"], 1)
        self.assertLess(data["threshold"], 1)
        self.assertEqual(data["recommended"], {"gate": "ratio", "threshold": data["threshold"]})
        scored = json.loads(self.assert_ok(harp("score", "-m", str(TINY), "-p", STORY * 3, "--json", "--harp-gate", "ratio",
                                                "--harp-threshold", str(data["threshold"]))).out)
        self.assertEqual(scored["hesitations"], round(data["share"] * data["steps"]))
        text = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", STORY, "--target-share", "0.3", "--harp-gate", "ratio")).out
        self.assertNotIn("bits", text)

    def test_shares_at_the_ends(self):
        never = self.calibrate("--target-share", "0")
        self.assertEqual((never["threshold"], never["share"]), ("inf", 0))
        self.assertEqual(self.calibrate("--target-share", "1")["share"], 1)

    def test_generated_answer(self):
        flags = ["--seed", "3", "--temp", "0.8"]
        data = self.calibrate("--generate", "60", "--ignore-eos", "--target-share", "0.25", *flags, text="Once upon a time")
        self.assertEqual((data["source"], data["steps"], data["vanilla"]), ("generated answer", 60, None))
        answer = json.loads(self.assert_ok(generate("-n", "60", "--ignore-eos", "--harp-off", "--json", *flags)).out)
        entropies = [token["entropy"] for token in answer["tokens"]]
        self.assertAlmostEqual(data["entropy"]["mean"], sum(entropies) / 60, places=4)
        self.assertEqual(sum(h > data["threshold"] for h in entropies), round(data["share"] * 60))
        self.assertEqual(data["share"], 0.25)

    def test_budget(self):
        data = self.calibrate("--target-cost", "100", "--target-share", "0.3")  # more than any batch of two costs
        self.assertEqual((data["target"]["share"], data["target"]["cost"]), (0.3, 100))
        self.assertGreater(data["target"]["predicted_cost"], 0)
        self.assertEqual([batch["rows"] for batch in data["target"]["batches"]], [1, 2, 4, 8, 16, 32])
        self.assertEqual(self.calibrate("--target-cost", "100")["target"]["share"], 1)

    def test_text_ends_with_a_command_that_works(self):
        for flags in [["--target-share", "0.2"], ["--target-share", "0.5", "--harp-redraw", "2"], ["--generate", "30", "--seed", "1"]]:
            with self.subTest(flags=flags):
                result = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", STORY, *flags))
                self.assertNotIn("\033", result.out + result.err)
                self.assertIn("generated" if "--generate" in flags else "given text", result.out)
                self.assertEqual(result.out.count("◄ threshold"), 1)
                self.assertLessEqual(max(len(line) for line in result.out.splitlines() if "█" in line), 80)
                command = shlex.split(result.out.splitlines()[-1])
                self.assertEqual(command[:2], ["harp", "generate"])
                self.assert_ok(harp(*command[1:], "-p", "Once", "-n", "3"))

    def test_model_path_is_quoted(self):
        path = self.folder / "a model's $path.gguf"
        path.symlink_to(TINY)
        result = self.assert_ok(harp("calibrate", "-m", str(path), "-p", STORY, "--target-share", "0.2"))
        self.assertEqual(shlex.split(result.out.splitlines()[-1])[3], str(path))

    def test_interrupt(self):
        if not SMOL.is_file():
            self.skipTest(f"no {SMOL}")
        cases = {r"\d\d %\)": ["--target-share", "0.2"],  # reading the text
                 r"choosing: \d": ["--window", "4"],
                 r"answering: \d\d": ["--generate", "3000", "--ignore-eos"]}
        for pattern, flags in cases.items():
            with self.subTest(flags=flags):
                terminal = self.terminal("calibrate", "-m", str(SMOL), "-p", STORY * 8, "-c", "64" if "--generate" not in flags else "4096",
                                         "--json", *flags, streams=["stderr"])
                terminal.wait_for(pattern)
                terminal.process.send_signal(signal.SIGINT)
                result = terminal.finish()
                self.assertEqual((result.code, result.out), (INTERRUPTED, ""), result)
                self.assertIn("interrupted", terminal.text)


def nonsense(n):
    """Text that a model trained on stories finds improbable, the more so the better it is."""
    letters = "zqxvjkw"
    return " ".join(letters[i % 7] + letters[i * i % 5] + letters[i // 7 % 7] for i in range(n))


@needs_tiny
class Search(CliTest):
    """On 40 examples of the tiny model. Checks that the figures are consistent, not what they are."""

    FLAGS = ["--views", "last:3,guidance", "--thresholds", "0.5,1", "--betas", "0.5,2", "--plausibilities", "0,0.1", "-c", "128"]

    def setUp(self):
        super().setUp()
        words = (STORY * 40).split()
        lines = [{"context": " ".join(words[7 * i: 7 * i + 12]), "continuation": " " + words[7 * i + 12]} for i in range(44)]
        self.examples = self.write("examples.jsonl", lines)

    def write(self, name, lines):
        path = self.folder / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    def search(self, *flags):
        return json.loads(self.assert_ok(harp("calibrate", "-m", str(TINY), "--json", *flags)).out)

    def test_examples(self):
        data = self.search("--examples", str(self.examples), *self.FLAGS)
        self.assertEqual((data["metric"], data["development"]["examples"], data["check"]["examples"]), ("accuracy", 22, 22))
        options = [(t["options"]["view"], t["options"]["threshold"], t["options"]["beta"], t["options"]["plausibility"])
                   for t in data["tries"]]
        expected = [(v, t, b, p) for v in ("last", "guidance") for t in (0.5, 1) for b, p in ((0.5, 0), (2, 0), (2, 0.1))]
        self.assertEqual(options, expected)
        self.assertEqual(data["development"]["readings"], 2)
        best = data["tries"][data["best"]["index"]]
        self.assertEqual(best["difference"], max(t["difference"] for t in data["tries"]))
        check = data["check"]
        self.assertAlmostEqual(check["difference"], check["best"] - check["vanilla"])
        self.assertAlmostEqual(check["difference"], (check["gained"] - check["lost"]) / 22)
        self.assertAlmostEqual(check["interval"][1] - check["interval"][0], 2 * 1.96 * check["standard_error"])
        self.assertEqual(data["helps"], data["best"]["p_value"] <= 0.05 and check["interval"][0] > 0)

    def test_gates(self):
        rest = ["--views", "last:3", *self.FLAGS[2:], "--ratio-thresholds", "0.2"]
        flags = [*rest, "--gates", "entropy,ratio"]
        data = self.search("--examples", str(self.examples), *flags)
        tries = [(t["options"]["gate"], t["options"]["threshold"], t["options"]["beta"]) for t in data["tries"]]
        self.assertEqual(tries, [(g, t, b) for g, thresholds in (("entropy", (0.5, 1)), ("ratio", (0.2,))) for t in thresholds
                                 for b in (0.5, 2, 2)])
        self.assertEqual(data["development"]["readings"], 1)
        alone = self.search("--examples", str(self.examples), *rest, "--gates", "ratio")
        self.assertEqual([t["hesitations"] for t in alone["tries"]], [t["hesitations"] for t in data["tries"][-3:]])
        self.assertEqual([t["difference"] for t in alone["tries"]], [t["difference"] for t in data["tries"][-3:]])

    def test_negative_prompt(self):
        flags = ["--views", "guidance", "--thresholds", "0", "--betas", "2", "--plausibilities", "0"]
        figures = [self.search("--examples", str(self.examples), "-c", "128", *flags, *negative, "--metric", "log-likelihood")
                   for negative in ([], ["--harp-negative-prompt", "The dog was red."], ["--harp-negative-prompt", STORY])]
        differences = [figure["tries"][0]["difference"] for figure in figures]
        self.assertEqual(len(set(differences)), 3, differences)
        # a text has no prompt: guidance is tried on it with a negative one alone
        text = ["-p", nonsense(1200), *flags[:-4], "--betas", "0.5", "--plausibilities", "0", "--window", "16"]
        negative, preset = "zqz xqq vqx jvx kzz", self.folder / "preset.json"
        self.assert_fault(harp("calibrate", "-m", str(TINY), *text), USAGE, "guidance", "--harp-negative-prompt")
        data = self.search(*text, "--harp-negative-prompt", negative, "--write-preset", str(preset))
        self.assertTrue(data["helps"], data)
        self.assertEqual(json.loads(preset.read_text())["harp"]["negative_prompt"], negative)
        command = shlex.split(data["command"])
        self.assertEqual(command[-2:], ["--harp-negative-prompt", negative])
        answers = [json.loads(self.assert_ok(generate("-n", "12", "--json", "--temp", "0", "--harp-beta", "0", *flags)).out)["text"]
                   for flags in (command[4:], ["--harp-preset", str(preset)], command[4:-2],
                                 ["--harp-preset", str(preset), "--harp-view", "last"])]
        self.assertEqual(answers[0], answers[1])
        self.assertNotEqual(answers[0], answers[2])

    def test_choices(self):
        lines = [{"context": f"Question {i}:", "choices": [" a", " b", " c"], "answer": i % 3} for i in range(40)]
        data = self.search("--examples", str(self.write("choices.jsonl", lines)), *self.FLAGS)
        self.assertIn(data["development"]["vanilla"] * 20, range(21))

    def test_one_that_helps_is_recommended_and_its_preset_works(self):
        # the tiny model's confident predictions are wrong here, so half of a damaged pass is better
        preset = self.folder / "preset.json"
        flags = ["-p", nonsense(1200), "--views", "perturbed:0.6", "--thresholds", "0", "--betas", "0.5", "--plausibilities", "0",
                 "--window", "16", "--write-preset", str(preset)]
        data = self.search(*flags)
        self.assertEqual((data["metric"], data["helps"]), ("log-likelihood", True))
        self.assertEqual(data["recommended"]["strength"], 0.6)
        written = json.loads(preset.read_text())
        self.assertEqual({**written["harp"], "enabled": True}, data["recommended"])
        self.assertEqual(written["found_by"]["check"], data["check"])
        used = json.loads(self.assert_ok(generate("-n", "3", "--json", "--harp-preset", str(preset), "--harp-beta", "0.25")).out)
        self.assertEqual((used["harp"]["strength"], used["harp"]["threshold"], used["harp"]["beta"]), (0.6, 0, 0.25))
        text = self.assert_ok(harp("calibrate", "-m", str(TINY), *flags)).out
        self.assertIn("It helps", text)
        self.assertIn("--harp-strength 0.6", text.splitlines()[-1])

    def test_nothing_that_helps_is_said(self):
        preset = self.folder / "preset.json"
        result = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", STORY * 20, "--views", "perturbed:0.9", "--thresholds", "0",
                                     "--betas", "0.5", "--plausibilities", "0", "--window", "16", "--write-preset", str(preset)))
        self.assertIn("Nothing was seen to help", result.out)
        self.assertEqual(shlex.split(result.out.splitlines()[-1])[-1], "--harp-off")
        self.assertIn("no preset", result.err)
        self.assertFalse(preset.exists())

    def test_bad_examples(self):
        good = {"context": "a", "continuation": " b"}
        bad = [("{", "line 2"), ([], "line 2"), ({"context": "a"}, "continuation"), ({"context": "", "continuation": ""}, "no tokens"),
               ({"context": "a", "choices": [" b", " c"], "answer": 2}, "0..1"),
               ({"context": "a", "choices": [" b"], "answer": 0}, "choices: 1; allowed: 2 or more"),
               ({"context": "a", "choices": [], "answer": 0}, "choices: 0; allowed: 2 or more"),
               ({"context": "a", "choices": [1], "answer": 0}, "choices"),
               ({"context": 5, "continuation": " b"}, "context")]
        for line, message in bad:
            with self.subTest(line=line):
                path = self.write("bad.jsonl", [good, line])
                self.assert_fault(harp("calibrate", "-m", str(TINY), "--examples", str(path)), USAGE, "bad.jsonl", "line 2", message)
        for path, message in [(self.folder / "none", "No such file"), (self.folder, "Is a directory")]:
            self.assert_fault(harp("calibrate", "-m", str(TINY), "--examples", str(path)), USAGE, f"examples '{path}'", message)
        few = self.write("few.jsonl", [good] * 39)
        self.assert_fault(harp("calibrate", "-m", str(TINY), "--examples", str(few)), USAGE, "39 examples", "40")
        long = self.write("long.jsonl", [good, {"context": STORY * 20, "continuation": " b"}])
        self.assert_fault(harp("calibrate", "-m", str(TINY), "--examples", str(long), "-c", "64"), USAGE, "long.jsonl", "line 2",
                          "tokens; allowed: 2..65", "-c")
        # without -c, as many as the model was trained with, though examples share a larger pool
        trained = self.write("trained.jsonl", [good, {"context": STORY * 20, "continuation": " b"}])
        self.assert_fault(harp("calibrate", "-m", str(TINY), "--examples", str(trained)), USAGE, "tokens; allowed: 2..513", "-c")

    def test_flags_of_a_text_beside_examples(self):
        for flag in ("--window", "--max-tokens"):
            self.assert_fault(harp("calibrate", "-m", str(TINY), "--examples", str(self.examples), flag, "20"), USAGE, "--examples", flag)

    def test_what_is_wrong_in_an_example_is_named(self):
        good = {"context": "a", "continuation": " b"}
        for line, message in [({"context": ["x" * 500], "continuation": " b"}, "context: ["), ({"context": "a", "continuation": 5}, "continuation: 5; allowed: a text"),
                              ({"context": "a", "choices": [" b", 7], "answer": 0}, "choices[1]: 7; allowed: a text"),
                              ({"context": "a", "choices": [" b", ""], "answer": 0}, "choices[1]: it has no tokens"),
                              ({"context": "a", "choices": "bc", "answer": 0}, 'choices: "bc"; allowed: a list of texts'),
                              ({"context": "a", "choices": [" b", " c"], "answer": -1}, "answer: -1; allowed: 0..1"),
                              ({"context": "a", "choices": [" b", " c"], "answer": 1.0}, "answer: 1.0; allowed: 0..1"),
                              ({"context": "a", "choices": [" b", " c"], "answer": 1 << 80}, "answer: 1.2089"),
                              ({"context": "a", "choices": [" b", " c"], "answer": "b"}, 'answer: "b"; allowed: 0..1'),
                              ({"context": "a", "continuation": " b", "choices": [" b", " c"], "answer": 0}, "not {")]:
            with self.subTest(line=line):
                result = harp("calibrate", "-m", str(TINY), "--examples", str(self.write("bad.jsonl", [good, line])))
                self.assert_fault(result, USAGE, "bad.jsonl", "line 2", message)
                self.assertLess(len(result.err), 400)
        path = self.folder / "bad.jsonl"
        for data in (b'{"context": "a",', b"\xff", b'{"context": "a\xff", "continuation": "b"}', b"x" * 5000):
            path.write_bytes(data)
            result = harp("calibrate", "-m", str(TINY), "--examples", str(path))
            self.assert_fault(result, USAGE, "bad.jsonl", "line 1", "not JSON", '"continuation": TEXT')
            self.assertLess(len(result.err), 400)

    HELPS = ["--views", "perturbed:0.6", "--thresholds", "0", "--betas", "0.5", "--plausibilities", "0", "--window", "16"]

    def test_a_preset_is_replaced_whole(self):
        preset = self.folder / "preset.json"
        preset.write_text("old")
        preset.chmod(0o600)
        link = os.open(preset, os.O_RDONLY)  # as a program that reads it while the new one is written
        self.assertTrue(self.search("-p", nonsense(1200), *self.HELPS, "--write-preset", str(preset))["helps"])
        self.assertEqual(os.read(link, 100), b"old")
        os.close(link)
        self.assertIn("found_by", json.loads(preset.read_text()))
        self.assertEqual(preset.stat().st_mode & 0o777, 0o600)
        self.assertEqual([path.name for path in self.folder.glob("preset*")], ["preset.json"])

    def test_a_preset_that_cannot_be_written_in_the_end_loses_no_figures(self):
        result = harp("calibrate", "-m", str(TINY), "-p", nonsense(1200), *self.HELPS, "--write-preset", "/dev/full")
        self.assert_fault(result, FAILURE, "preset '/dev/full'", "No space left", output=True)
        self.assertIn("It helps", result.out)

    def test_a_preset_that_cannot_be_written_is_refused_at_once(self):
        for path, message in [(self.folder, "Is a directory"), (self.folder / "none/preset.json", "No such file"),
                              (self.examples / "preset.json", "Not a directory")]:
            with self.subTest(path=path):
                self.assert_fault(harp("calibrate", "-m", "nowhere.gguf", "-p", "x", "--write-preset", str(path)), FAILURE,
                                  "--write-preset", str(path), message)


@needs_tiny
class Presets(CliTest):
    def test_a_pipe(self):
        """It is read once."""
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(pipe.write_text, '{"harp": {"view": "guidance", "beta": 2, "negative_prompt": "A cat"}}')
            result = self.assert_ok(generate("-n", "3", "--json", "--harp-preset", str(pipe)))
        self.assertEqual(json.loads(result.out)["harp"]["view"], "guidance")

    def test_presets_that_are_no_json(self):
        for text, message in [("", "byte 1"), ('{"harp": {"beta": 1},}', "byte 22"), ('{"harp": {"beta": 1e999}}', "too large")]:
            path = self.folder / "preset.json"
            path.write_text(text)
            self.assert_fault(generate("--harp-preset", str(path)), USAGE, "preset.json", message)

    def test_bad_presets(self):
        for text, message in [("", "JSON"), ("[]", "harp"), ('{"harp": []}', "harp"), ('{"harp": {"betta": 1}}', "did you mean 'beta'"),
                              ('{"harp": {"beta": 9}}', "0..8"), ('{"harp": {"beta": true}}', "harp.beta"),
                              ('{"harp": {"negative_prompt": 5}}', "harp.negative_prompt"), ('{"harp": {"strength": 5}}', "strength"),
                              ('{"harp": {"enabled": "no"}}', 'harp.enabled: "no"; allowed: true, false'),
                              ('{"harp": {"enabled": 0}}', "harp.enabled: 0; allowed: true, false"),
                              ('{"harp": {"enable": false}}', "unknown option 'enable' (did you mean 'enabled'?)"),
                              ('{"harp": {"foo": [1]}}', "unknown option 'foo'; known: enabled, negative_prompt, gate"),
                              ('{"harp": {"seed": 18446744073709551616}}', "is out of range; allowed: 0..18446744073709551615")]:
            with self.subTest(text=text):
                path = self.folder / "bad.json"
                path.write_text(text)
                self.assert_fault(generate("--harp-preset", str(path)), USAGE, "bad.json", message)
        self.assert_fault(generate("--harp-preset", "nowhere.json"), USAGE, "nowhere.json", "No such file")
        self.assert_fault(generate("--harp-preset", str(self.folder)), USAGE, f"preset '{self.folder}'", "Is a directory")

    def preset(self, **options):
        path = self.folder / "preset.json"
        path.write_text(json.dumps({"harp": options}))
        return str(path)

    def test_one_can_switch_off(self):
        on = self.preset(enabled=True, threshold=2)
        used = json.loads(self.assert_ok(generate("-n", "2", "--json", "--harp-preset", on)).out)["harp"]
        self.assertEqual((used["enabled"], used["threshold"]), (True, 2))
        off = self.preset(enabled=False, view="guidance", negative_prompt="A cat", threshold=2)
        for flags in [[], ["--harp-threshold", "0"]]:
            used = json.loads(self.assert_ok(generate("-n", "2", "--json", "--harp-preset", off, *flags)).out)["harp"]
            self.assertEqual(used, {"enabled": False})
        kernels = [json.loads(self.assert_ok(harp("info", "-m", str(TINY), "--json", *flags)).out)["build"]["kernels"]
                   for flags in (["--harp-preset", off], ["--harp-off"], ["--harp-preset", off, "--harp-kernels", "on"])]
        self.assertEqual(kernels[0], kernels[1])
        self.assertNotEqual(kernels[0], kernels[2])
        for flags in [["calibrate"], ["compare"], ["score", "--sweep", "beta=0.5"], ["bench"]]:
            prompt = [] if flags == ["bench"] else ["-p", "x"]
            self.assert_fault(harp(*flags, "-m", str(TINY), *prompt, "--harp-preset", off), USAGE, f"preset '{off}'", "enabled")

    def test_calibrate_takes_of_one_what_it_does_not_look_for(self):
        flags = ["calibrate", "-m", str(TINY), "-p", STORY * 20, "--window", "16", "--thresholds", "0", "--betas", "0.5", "--plausibilities", "0"]
        for options, named in [({"beta": 2, "view": "last"}, "beta, view"), ({"threshold": 1}, "threshold"), ({"gate": "ratio"}, "gate"),
                               ({"strength": 0.5}, "strength"), ({"plausibility": 0}, "plausibility"), ({"view_tokens": 3}, "view_tokens")]:
            path = self.preset(**options)
            self.assert_fault(harp(*flags, "--harp-preset", path), USAGE, f"preset '{path}': {named}: calibrate tries several", "--views")
        preset = self.preset(reframings=2, negative_prompt="The dog was red.", seed=9)
        tried = [json.loads(self.assert_ok(harp(*flags, "--views", "guidance", "--json", *own)).out)["tries"][0] for own in
                 (["--harp-preset", preset, "--harp-reframings", "1"], ["--harp-negative-prompt", "The dog was red.", "--harp-seed", "9"])]
        self.assertEqual(tried[0], tried[1])

    def test_integers_may_be_written_with_a_point(self):
        preset = self.preset(seed=7.0, view="last", view_tokens=3.0, threshold=2.0)
        options = json.loads(self.assert_ok(harp("info", "-m", str(TINY), "--json", "--harp-preset", preset)).out)["harp"]["options"]
        self.assertEqual((options["seed"], options["view_tokens"], options["threshold"]), (7, 3, 2))

    def test_a_threshold_for_one(self):
        preset = self.preset(view="guidance", beta=2, threshold=9, negative_prompt="A cat's day")
        result = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", STORY, "--target-share", "0.2", "--harp-preset", preset))
        command = shlex.split(result.out.splitlines()[-1])
        self.assertEqual([command[i + 1] for i in map(command.index, ("--harp-view", "--harp-beta", "--harp-negative-prompt"))],
                         ["guidance", "2", "A cat's day"])
        self.assertNotEqual(command[command.index("--harp-threshold") + 1], "9")

    def test_each_set_that_reads_it_has_the_negative_prompt_of_one(self):
        preset, text = self.preset(negative_prompt="The dog was red. " * 3), "The dog was red. " * 3
        flags = ["-m", str(TINY), "-p", STORY, "--json", "--harp-threshold", "0"]
        for command, own in [("compare", ["--with", "view=guidance,beta=2", "-n", "8", "--temp", "0"]),
                             ("score", ["--sweep", "view=guidance,last"]), ("generate", ["--harp-view", "guidance", "-n", "8", "--temp", "0"])]:
            results = []
            for negative in (["--harp-preset", preset], ["--harp-negative-prompt", text], []):
                data = json.loads(self.assert_ok(harp(command, *flags, *own, *negative)).out)
                results.append(data["text"] if command == "generate" else data["sets"][0]["text"] if command == "compare" else
                               data["combinations"][0]["harp"])
            with self.subTest(command=command):
                self.assertEqual(results[0], results[1])
                if command == "score":
                    self.assertNotEqual(results[0], results[2])

    def test_flags_that_do_not_fit_one(self):
        path = self.preset(reframings=2)
        self.assert_fault(generate("--harp-preset", path, "--harp-view", "last"), USAGE, f"preset '{path}' with the flags", "reframings")


if __name__ == "__main__":
    unittest.main(verbosity=2)
