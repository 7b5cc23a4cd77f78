#!/usr/bin/env python3
"""harp generate: seeds, JSON, traces, pause tokens, grammars."""

import json
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, OPTIONS, USAGE, generate, harp
from programs import SMOL, TINY, needs_smol, needs_tiny


@needs_tiny
class Generating(CliTest):
    def test_same_seed_same_output(self):
        runs = [json.loads(self.assert_ok(generate("-n", "60", "--seed", "7", "--harp-schedule", "lazy", "--json")).out) for _ in range(2)]
        self.assertGreater(runs[0]["statistics"]["hesitations"], 0)
        for key in ["text", "tokens", "stop_reason", "sampler_seed"]:
            self.assertEqual(runs[0][key], runs[1][key])
        other = self.assert_ok(generate("-n", "60", "--seed", "8", "--harp-schedule", "lazy")).out
        self.assertNotEqual(other.strip(), runs[0]["text"].strip())

    def test_off_is_infinite_threshold(self):
        off, never = (self.assert_ok(generate("-n", "80", "--seed", "5", *flags)).out
                      for flags in (["--harp-off"], ["--harp-threshold", "inf"]))
        self.assertEqual(off, never)
        self.assertNotEqual(off, self.assert_ok(generate("-n", "80", "--seed", "5", "--harp-threshold", "0.5")).out)

    def test_little_room_for_the_second_pass(self):
        def cells(result):
            return int(re.search(r"n_ctx +(?:= )?(\d+)", result.err)[1])

        for view in (["last"], ["guidance"], ["perturbed", "--harp-scope", "generated"]):
            with self.subTest(view=view):
                flags = ["-n", "20", "-c", "2048", "--temp", "0", "--harp-threshold", "0.2", "--harp-beta", "2", "--harp-view", *view, "--verbose"]
                rooms = [["--harp-n-ctx-twin", "0"], ["--harp-n-ctx-twin", "32"] if view != ["last"] else []]  # known for last
                whole, small = (self.assert_ok(generate(*flags, *room)) for room in rooms)
                self.assertEqual(small.out, whole.out)
                self.assertEqual((cells(whole), cells(small)), (4096, 2304))  # llama.cpp rounds up to 256
        self.assert_fault(generate("--harp-n-ctx-twin", "32"), USAGE, "option 'view': perturbed", "n_ctx_twin", "allowed: guidance, last")
        self.assert_fault(generate("--harp-n-ctx-twin", "-1"), USAGE, "--harp-n-ctx-twin")
        for n, room in ((8, 8), (4, 16)):  # the prompt's last token or the negative prompt is in it too
            negative = ["--harp-negative-prompt", "Once upon a time there was a red dog"] if room == 16 else []
            result = self.assert_ok(generate("-n", "60", "--harp-view", "guidance", "--harp-n-ctx-twin", str(room), *negative, "--json"))
            data = json.loads(result.out)
            self.assertEqual(data["stop_reason"], "context_full")
            self.assertLessEqual(len(data["tokens"]), n + 4)
        for command in ("bench", "calibrate", "info"):
            self.assert_fault(harp(command, "-m", str(TINY), "--harp-n-ctx-twin", "32"), USAGE, "--harp-n-ctx-twin", f"not in harp {command}")

    def test_json(self):
        data = json.loads(self.assert_ok(generate("-n", "20", "--seed", "2", "--harp-threshold", "0.5", "--json")).out)
        for key in ["text", "tokens", "stop_reason", "prompt", "generated", "harp", "statistics", "sampler_seed", "model", "build"]:
            self.assertIn(key, data)
        self.assertEqual(data["text"], "".join(token["text"] for token in data["tokens"]))
        self.assertEqual(data["generated"]["tokens"], len(data["tokens"]))
        self.assertEqual(data["sampler_seed"], 2)
        self.assertEqual(data["statistics"]["hesitations"], sum(token["hesitated"] for token in data["tokens"]))
        self.assertEqual(sorted(data["harp"]), sorted(OPTIONS + ["enabled"]))
        self.assertEqual(data["harp"]["threshold"], 0.5)
        self.assertEqual(data["model"]["file"], TINY.name)
        self.assertRegex(data["model"]["fingerprint"], r"^[0-9a-f]{64}$")
        off = json.loads(self.assert_ok(generate("-n", "4", "--harp-off", "--json")).out)
        self.assertEqual(off["harp"], {"enabled": False})

    def test_sampler_seed_reported_repeats_the_run(self):
        first = json.loads(self.assert_ok(generate("-n", "40", "--harp-schedule", "lazy", "--json")).out)
        again = json.loads(self.assert_ok(generate("-n", "40", "--harp-schedule", "lazy", "--json",
                                                   "--seed", str(first["sampler_seed"]))).out)
        self.assertEqual(first["text"], again["text"])

    def test_trace(self):
        trace = self.folder / "trace.jsonl"
        for schedule in ["lazy", "fused", "auto"]:
            with self.subTest(schedule=schedule):
                result = self.assert_ok(generate("-n", "60", "--seed", "4", "--harp-threshold", "0.8", "--harp-schedule", schedule,
                                                 "--trace", str(trace)))
                lines = self.assert_whole_json_lines(trace)
                self.assertEqual("".join(line["text"] for line in lines).strip(), result.out.strip())
                hesitated = [line for line in lines if line["hesitated"]]
                self.assertTrue(0 < len(hesitated) < len(lines))
                self.assertEqual([line["position"] for line in lines], list(range(lines[0]["position"], lines[0]["position"] + len(lines))))
                n_shared = 0
                for line in lines:
                    self.assertEqual(line["entropy"] > 0.8, line["hesitated"], line)
                    tops = {name: {c["id"]: c["logit"] for c in line.get(name, [])} for name in ("vanilla", "reframed", "mixed")}
                    self.assertEqual(len(tops["vanilla"]), 8)
                    self.assertEqual(len(tops["mixed"]), 8)
                    self.assertEqual([c["logit"] for c in line["mixed"]], sorted(tops["mixed"].values(), reverse=True))
                    if not line["hesitated"]:
                        self.assertEqual(line["vanilla"], line["mixed"])
                        continue
                    self.assertEqual(len(tops["reframed"]), 8)
                    for token in tops["mixed"].keys() & tops["vanilla"].keys() & tops["reframed"].keys():
                        n_shared += 1
                        self.assertAlmostEqual(tops["mixed"][token], 0.5 * tops["vanilla"][token] + 0.5 * tops["reframed"][token], places=4)
                self.assertGreater(n_shared, len(hesitated))

    def test_results_say_which_kernels_computed_them(self):
        off = {"compare": ["--harp-kernels", "off"]}  # it compares with HARP off in any case
        for command in (["generate", "-p", "x", "-n", "1"], ["compare", "-p", "x", "-n", "1"], ["score", "-p", "Once upon"], ["info"]):
            kernels = [json.loads(self.assert_ok(harp(*command, "-m", str(TINY), "--json", *flags)).out)["build"]["kernels"]
                       for flags in ([], ["--harp-kernels", "off"], off.get(command[0], ["--harp-off"]))]
            self.assertEqual(kernels[1:], ["llama.cpp's"] * 2)

    def test_environment_option(self):
        from_environment = json.loads(self.assert_ok(generate("-n", "2", "--json", env={"HARP_THRESHOLD": "2.5"})).out)
        self.assertEqual(from_environment["harp"]["threshold"], 2.5)
        flag_wins = json.loads(self.assert_ok(generate("-n", "2", "--json", "--harp-threshold", "3", env={"HARP_THRESHOLD": "2.5"})).out)
        self.assertEqual(flag_wins["harp"]["threshold"], 3)
        never = json.loads(self.assert_ok(generate("-n", "2", "--json", env={"HARP_THRESHOLD": "inf"})).out)
        self.assertEqual(never["harp"]["threshold"], "inf")

    def test_default_model_from_environment(self):
        self.assert_ok(harp("generate", "-p", "Once", "-n", "2", env={"HARP_DEFAULT_MODEL": str(TINY)}))

    def test_context_full(self):
        data = json.loads(self.assert_ok(generate("-c", "256", "-n", "1000", "--ignore-eos", "--json")).out)
        self.assertEqual(data["stop_reason"], "context_full")


@needs_tiny
class Pause(CliTest):
    def test_appends_tokens_to_the_prompt(self):
        runs = [json.loads(self.assert_ok(generate("-n", "4", "--temp", "0", "--json", *flags)).out)
                for flags in ([], ["--pause", "7"], ["--pause", "2", "--pause-text", "and so"])]
        n = [run["prompt"]["tokens"] for run in runs]
        self.assertGreater(n[1], n[0])
        self.assertEqual((n[1] - n[0]) % 7, 0)  # a pause text may be several tokens
        self.assertEqual((n[2] - n[0]) % 2, 0)
        self.assertEqual(len({run["text"] for run in runs}), 3)

    def test_faults(self):
        self.assert_fault(generate("--pause", "-1"), USAGE, "--pause")
        self.assert_fault(generate("--pause", "3", "--pause-text", ""), USAGE, "--pause-text")


@needs_smol
class Constraints(CliTest):
    def test_grammar(self):
        for schedule in ["lazy", "fused"]:
            for seed in ["1", "2"]:
                result = self.assert_ok(generate("--grammar", 'root ::= "yes" | "no"', "--seed", seed, "-n", "20", "--harp-threshold", "0",
                                                 "--harp-schedule", schedule, model=SMOL, prompt="Is the sky green?"))
                self.assertIn(result.out.strip(), ("yes", "no"))

    def test_grammar_that_ends_where_the_end_is_ignored(self):
        for temperature in ["0", "1"]:
            result = self.assert_ok(generate("--grammar", 'root ::= "yes"', "--ignore-eos", "--temp", temperature, "-n", "20", model=SMOL))
            self.assertEqual(result.out.strip(), "yes")

    def test_json_schema(self):
        schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
                  "required": ["name", "age"], "additionalProperties": False}
        result = self.assert_ok(generate("--json-schema", json.dumps(schema), "-n", "100", "--seed", "1", "--harp-threshold", "0", "--json",
                                         model=SMOL, prompt="Describe a person."))
        data = json.loads(result.out)
        self.assertGreater(data["statistics"]["hesitations"], 0)
        person = json.loads(data["text"])
        self.assertEqual(sorted(person), ["age", "name"])
        self.assertTrue(0 <= person["age"] <= 99)


if __name__ == "__main__":
    unittest.main(verbosity=2)
