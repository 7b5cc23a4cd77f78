#!/usr/bin/env python3
"""Ctrl-C at any time: exit code 130, one line of output, whole lines in traces."""

import re
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, INTERRUPTED, Result, TIMEOUT
from programs import HARP, MODELS, SHARED, SMOL, environment, needs_smol

FLOAT32 = MODELS / "SmolLM2-135M-Instruct-F32.gguf"
RECORDING = SHARED / "golden/smollm2-135m.plain.harp.json"


@needs_smol
class Interrupts(CliTest):
    def assert_interrupted(self, terminal):
        result = terminal.finish()
        self.assertEqual(result.code, INTERRUPTED, f"{result}\n--- terminal\n{terminal.text[-1500:]}")
        lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\033\[K", "", terminal.text)) if line.strip()]
        lines = [line for line in lines if not re.match(r"loading the model|prompt: \d", line)]
        self.assertEqual(len(lines), 1, terminal.text[-1500:])
        self.assertIn("interrupted", lines[0])

    def test_while_loading(self):
        terminal = self.terminal("generate", "-m", str(SMOL), "-p", "x", "--load-mode", "none", "--trace", str(self.folder / "t"), streams=["stderr"])
        terminal.wait_for("loading the model")
        terminal.process.send_signal(signal.SIGINT)
        self.assert_interrupted(terminal)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_while_reading_a_long_prompt(self):
        trace = self.folder / "trace.jsonl"
        terminal = self.terminal("generate", "-m", str(SMOL), "-c", "8192", "-b", "32", "-p", "The cat sat on the mat. " * 700,
                                 "--trace", str(trace), streams=["stderr"])
        terminal.wait_for("prompt: ")
        terminal.process.send_signal(signal.SIGINT)
        self.assert_interrupted(terminal)
        self.assertEqual(trace.read_bytes(), b"")

    def test_within_one_large_batch(self):
        terminal = self.terminal("generate", "-m", str(SMOL), "-c", "8192", "-b", "8192", "-p", "The cat sat on the mat. " * 700,
                                 streams=["stderr"])
        terminal.wait_for(r"loading the model")
        time.sleep(2)  # well past loading, well before the end of some 5000 tokens twice
        terminal.process.send_signal(signal.SIGINT)
        self.assert_interrupted(terminal)

    def test_while_generating(self):
        trace = self.folder / "trace.jsonl"
        for schedule in ["lazy", "fused"]:
            with self.subTest(schedule=schedule):
                process = subprocess.Popen([HARP, "generate", "-m", str(SMOL), "-p", "Tell a long story.", "-n", "3000", "--ignore-eos",
                                            "--harp-schedule", schedule, "--trace", str(trace)], env=environment(), bufsize=0,
                                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                text = process.stdout.read(1)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=TIMEOUT)
                result = Result(process.returncode, text + out, err)
                self.assertEqual(result.code, INTERRUPTED, result)
                self.assertIn("interrupted", result.err)
                self.assertTrue(result.out.endswith("\n"), result)
                lines = self.assert_whole_json_lines(trace)
                self.assertEqual("".join(line["text"] for line in lines).rstrip("\n"), result.out.rstrip("\n"))
                self.assertEqual([p.name for p in self.folder.iterdir()], [trace.name])

    def test_score_and_compare(self):
        for args in [["score", "-c", "64", "-p", "The cat sat on the mat. " * 500], ["compare", "-p", "Tell a story.", "-n", "2000"]]:
            with self.subTest(command=args[0]):
                terminal = self.terminal(*args, "-m", str(SMOL), streams=["stderr"])
                terminal.wait_for(r"s left|vanilla: \d+ tokens")
                terminal.process.send_signal(signal.SIGINT)
                result = terminal.finish()
                self.assertEqual(result.code, INTERRUPTED, result)
                self.assertIn("interrupted", terminal.text)

    @unittest.skipUnless(FLOAT32.is_file() and RECORDING.is_file(), f"no {FLOAT32} or no {RECORDING}")
    def test_verify(self):
        for pattern in ["loading the model", "replaying"]:
            with self.subTest(at=pattern):
                terminal = self.terminal("verify", "-m", str(FLOAT32), str(RECORDING), "-t", "1", streams=["stderr"])
                terminal.wait_for(pattern)
                terminal.process.send_signal(signal.SIGINT)
                result = terminal.finish()
                self.assertEqual(result.code, INTERRUPTED, f"{result}\n{terminal.text[-1500:]}")
                self.assertIn("harp verify: interrupted", terminal.text)
                self.assertNotIn("PASS", result.out)


if __name__ == "__main__":
    unittest.main(verbosity=2)
