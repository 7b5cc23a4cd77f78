#!/usr/bin/env python3
"""harp bench: every method, its references, its report."""

import json
import signal
import sys
import unittest
import xml.dom.minidom
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, FAILURE, INTERRUPTED, USAGE, harp
from programs import MODELS, TINY, needs_tiny

WINDOW, RECURRENT, HYBRID, BERT, T5 = (MODELS / f"random-{name}.gguf" for name in ("gemma3", "mamba", "lfm2", "bert", "t5"))


@needs_tiny
class Bench(CliTest):
    def bench(self, *flags):
        return json.loads(self.assert_ok(harp("bench", "-m", str(TINY), "-n", "12", "--rounds", "2", "--json", *flags, *(
            [] if "--n-prompts" in flags else ["--n-prompts", "2"]))).out)

    def test_json(self):
        data = self.bench("-md", str(TINY))
        methods = {method["name"]: method for method in data["methods"]}
        self.assertEqual(list(methods), ["vanilla", "harp", "harp-lazy", "harp-fused", "beam", "harp-beam", "lookup", "harp-lookup", "draft", "harp-draft"])
        for method in methods.values():
            for figure in ["steps_per_second", "step_time_relative_to_vanilla", "total_time_relative_to_vanilla", "first_token_seconds"]:
                spread = method[figure]
                self.assertTrue(0 < spread["min"] <= spread["median"] <= spread["max"], method)
        self.assertEqual(methods["vanilla"]["step_time_relative_to_vanilla"]["median"], 1)
        self.assertNotIn("hesitation_share", methods["vanilla"])
        self.assertTrue(0 < methods["harp"]["hesitation_share"] <= 1)
        self.assertGreater(methods["vanilla"]["cache_bytes"], 0)
        self.assertEqual(methods["harp"]["cache_bytes"], 2 * methods["vanilla"]["cache_bytes"])
        for name in ["lookup", "harp-lookup", "draft", "harp-draft"]:
            self.assertEqual(methods[name]["same_tokens"]["prompts"], 2, methods[name])
        self.assertGreater(methods["draft"]["acceptance"], 0.9)
        self.assertEqual((data["rounds"], data["prompts"], data["tokens_each"], data["complete"]), (2, 2, 12, True))
        self.assertEqual(data["harp"]["threshold"], 1)

    def test_prompts_whose_lines_end_in_cr_lf(self):
        counts = []
        for end in ["\n", "\r\n"]:
            path = self.folder / "prompts.txt"
            path.write_bytes(end.join(["Once upon a time", "", '{"prompt": "The dog"}', ""]).encode())
            counts.append(self.bench("--methods", "vanilla", "--prompts", str(path))["prompt_tokens"])
        self.assertEqual(counts[0], counts[1])

    def test_prompts_that_begin_with_a_byte_order_mark(self):
        counts = []
        for encoding in ["utf-8", "utf-8-sig"]:
            path = self.folder / "prompts.jsonl"
            path.write_text('{"prompt": "Once upon a time"}\n{"prompt": "The dog"}\n', encoding=encoding)
            counts.append(self.bench("--methods", "vanilla", "--prompts", str(path))["prompt_tokens"])
        self.assertEqual(counts[0], counts[1])

    @unittest.skipUnless(all(path.is_file() for path in (WINDOW, RECURRENT, HYBRID)), "no random models")
    def test_cache_of_models_that_do_not_keep_every_row(self):
        def cache(model, n_ctx, method="harp"):
            data = self.bench("-m", str(model), "--methods", method, "-c", str(n_ctx))
            return [one["cache_bytes"] for one in data["methods"]]

        attention = 2 * 64 * 2  # bytes of a row: K and V, 64 wide, F16
        for model, row, state in [(TINY, None, 0), (WINDOW, attention, None), (RECURRENT, 0, 2 * 4 * (3 * 128 + 16 * 128)),
                                  (HYBRID, attention // 2, 2 * 4 * 2 * 64)]:
            with self.subTest(model=model.name):
                small, large = cache(model, 1024), cache(model, 2048)
                self.assertEqual([small[1], large[1]], [2 * small[0], 2 * large[0]])
                if row is not None:  # grows by the layers that keep every row
                    self.assertEqual(large[0] - small[0], 1024 * row)
                if state is not None:
                    self.assertEqual(small[0] - (large[0] - small[0]), state)

    def test_a_line_while_one_waits(self):
        result = self.assert_ok(harp("bench", "-m", str(TINY), "-n", "4", "--rounds", "1", "--n-prompts", "1", "--methods", "vanilla",
                                     "--baseline", "sleep 9"))
        self.assertRegex(result.err, r"(?m)^baseline: sleep 9 \(since \d+ s\)$")
        self.assertNotIn("\r", result.err)

    def test_all_methods_and_their_references(self):
        data = self.bench("--methods", "harp-lookup,harp-redraw1,nucleus,harp-nucleus,pause,stock")
        self.assertEqual([m["name"] for m in data["methods"]], ["vanilla", "harp", "harp-redraw1", "nucleus", "harp-nucleus", "harp-lookup", "pause",
                                                                  "stock"])

    def test_outputs(self):
        plot = self.folder / "plot.svg"
        flags = ["bench", "-m", str(TINY), "-n", "4", "--rounds", "1", "--n-prompts", "1", "--methods", "harp"]
        result = self.assert_ok(harp(*flags, "--plot", str(plot), "--baseline", "true"))
        for text in ["vanilla", "harp", "x vanilla", "baseline `true`"]:
            self.assertIn(text, result.out)
        self.assertNotIn("\033", result.out + result.err)
        svg = xml.dom.minidom.parse(str(plot))
        self.assertEqual(svg.documentElement.tagName, "svg")
        markdown = self.assert_ok(harp(*flags, "--markdown")).out
        self.assertIn("| method |", markdown)
        self.assertIn("harp: gate=entropy threshold=1", markdown)

    def test_prompts_from_a_file(self):
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text('{"question": "Once?"}\n\nOnce upon a time\n{"text": "The dog"}\n')
        self.assertEqual(self.bench("--prompts", str(prompts), "--methods", "vanilla", "--n-prompts", "9")["prompts"], 3)

    def test_faults(self):
        bad = self.folder / "bad.jsonl"
        bad.write_text('{"answer": 1}\n')
        empty = self.folder / "empty.txt"
        empty.write_text("\n")
        preset = self.folder / "preset.json"
        preset.write_text('{"harp": {"view": "guidance", "negative_prompt": "A cat"}}')
        for flags, names in {
            ("--methods", "magic"): ["--methods", "magic", "harp-beam"],
            ("--methods", "draft"): ["--methods", "draft", "-md"],
            ("--rounds", "0"): ["--rounds", "0"],
            ("-n", "1"): ["-n", "1"],
            ("-n", "-1"): ["'-n'", "-1", "2.."],
            ("--predict=-5",): ["'-n'", "-5", "2.."],
            ("--json", "--markdown"): ["--json", "--markdown"],
            ("--prompts", str(self.folder / "no")): ["prompts", "no", "No such file"],
            ("--prompts", str(self.folder)): [f"prompts '{self.folder}'", "Is a directory"],
            ("--prompts", str(bad)): [str(bad), "line 1", "question"],
            ("--prompts", str(empty)): ["empty"],
            ("--harp-off",): ["--harp-off"],
            ("--baseline", "exit 3", "--rounds", "1", "--methods", "vanilla"): ["--baseline", "exit 3", "3"],
            ("-c", "64", "-n", "300"): ["'-n': 300", "vanilla", "the context of 256 is full", "-c"],
            ("--harp-preset", str(preset)): [f"preset '{preset}'", "negative_prompt", "not in harp bench"],
        }.items():
            with self.subTest(flags=flags):
                self.assert_fault(harp("bench", "-m", str(TINY), *flags), USAGE, *names)
        self.assert_fault(harp("bench", "-m", str(TINY), "-n", "4", "--rounds", "1", "--methods", "vanilla", "--plot", "/dev/full"),
                          FAILURE, "/dev/full", output=True)

    def test_models_that_a_method_cannot_use(self):
        for model in (RECURRENT, HYBRID):
            self.assert_fault(harp("bench", "-m", str(model), "-n", "4"), USAGE, "--methods", "lookup", "recurrent")
        for model in (BERT, T5):
            for methods in ("vanilla", "harp"):
                with self.subTest(model=model.name, methods=methods):
                    self.assert_fault(harp("bench", "-m", str(model), "-n", "4", "--methods", methods), FAILURE, model.name, "architecture",
                                      "does not predict a next token")

    def test_a_plot_that_cannot_be_written_is_refused_at_once(self):
        for path, message in [(self.folder, "Is a directory"), (self.folder / "none/plot.svg", "No such file")]:
            self.assert_fault(harp("bench", "-m", "nowhere.gguf", "--plot", str(path)), FAILURE, "--plot", str(path), message)

    def test_interrupt_is_said_in_each_form(self):
        for form in ([], ["--markdown"]):
            terminal = self.terminal("bench", "-m", str(TINY), "-n", "60", "--rounds", "1000", "--methods", "harp", *form, streams=["stderr"])
            terminal.wait_for(r"round [3-9] of")
            terminal.process.send_signal(signal.SIGINT)
            self.assertIn("interrupted: fewer rounds than asked for", terminal.finish().out)

    def test_interrupt_reports_the_rounds_that_are_complete(self):
        terminal = self.terminal("bench", "-m", str(TINY), "-n", "60", "--rounds", "1000", "--methods", "harp", "--json", streams=["stderr"])
        terminal.wait_for(r"round [3-9] of")
        terminal.process.send_signal(signal.SIGINT)
        result = terminal.finish()
        self.assertEqual(result.code, INTERRUPTED, result)
        data = json.loads(result.out)
        self.assertFalse(data["complete"])
        self.assertTrue(2 <= data["rounds"] < 1000)


if __name__ == "__main__":
    unittest.main(verbosity=2)
