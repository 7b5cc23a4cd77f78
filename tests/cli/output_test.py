#!/usr/bin/env python3
"""Where output goes: full disks, broken pipes, and colours on terminals only."""

import os
import pty
import re
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, FAILURE, OK, Result, TIMEOUT, USAGE, generate, harp
from programs import HARP, TINY, environment, needs_tiny


@needs_tiny
class OutputFaults(CliTest):
    def test_trace_to_full_disk(self):
        result = generate("-n", "20", "--trace", "/dev/full")
        self.assert_fault(result, FAILURE, "/dev/full", "No space left", output=True)

    def test_trace_to_unwritable_place(self):
        for path in [self.folder, self.folder / "missing/trace.jsonl", "/proc/trace.jsonl"]:
            with self.subTest(path=path):
                self.assert_fault(generate("-n", "2", "--trace", str(path)), FAILURE, str(path))

    def test_stdout_full(self):
        for args in [["generate", "-p", "Once", "-n", "20"], ["generate", "-p", "Once", "-n", "4", "--json"],
                     ["compare", "-p", "Once", "-n", "4"], ["score", "-p", "Once upon a time"],
                     ["score", "-p", "Once upon a time", "--sweep", "beta=0,1"], ["calibrate", "-p", "Once upon a time", "--target-share", "0.2"], ["info"], ["info", "--json"]]:
            with self.subTest(args=args), open("/dev/full", "wb") as full:
                result = harp(*args, "-m", str(TINY), stdout=full)
                self.assert_fault(result, FAILURE, "standard output", "No space left")

    def test_stderr_that_cannot_be_written(self):
        for code, *args in [(OK, "generate", "-m", str(TINY), "-p", "Once", "-n", "3"), (OK, "score", "-m", str(TINY), "-p", "Once upon a"),
                            (USAGE, "generate", "-m", "/nonexistent", "-p", "Once"), (USAGE, "bogus")]:
            for redirection in ("2>&-", "2>/dev/full"):
                with self.subTest(args=args, redirection=redirection):
                    done = subprocess.run(["bash", "-c", f'exec "$@" {redirection}', "bash", HARP, *args], stdin=subprocess.DEVNULL,
                                          capture_output=True, env=environment(), timeout=TIMEOUT, check=False)
                    self.assertEqual(done.returncode, code)
                    self.assertEqual(bool(done.stdout), code == OK)

    def test_closed_stdout(self):
        done = subprocess.run(["bash", "-c", 'exec "$@" >&- <&-', "bash", HARP, "generate", "-m", str(TINY), "-p", "Once", "-n", "3"],
                              stderr=subprocess.PIPE, env=environment(), timeout=TIMEOUT, check=False)
        self.assertEqual(done.returncode, FAILURE)
        self.assertIn(b"standard output", done.stderr)

    def test_help_to_full_stdout(self):
        for args in [["--help"], ["generate", "--help"], ["--version"]]:
            with self.subTest(args=args), open("/dev/full", "wb") as full:
                self.assertEqual(harp(*args, stdout=full).code, FAILURE)

    def test_broken_pipe(self):
        process = subprocess.Popen([HARP, "generate", "-m", str(TINY), "-p", "Once", "-n", "400", "--ignore-eos"], env=environment(),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
        process.stderr.close()
        self.assert_fault(Result(process.wait(timeout=TIMEOUT), b"", error), FAILURE, "standard output", "Broken pipe")


@needs_tiny
class Colour(CliTest):
    FLAGS = ["-m", str(TINY), "-p", "Once upon a time", "-n", "30", "--seed", "1", "--harp-threshold", "0.5"]

    def on_terminal(self, command="generate", **env):
        terminal = self.terminal(command, *self.FLAGS, env=env)
        result = terminal.finish()
        self.assert_ok(result)
        self.assertNotIn("\033", result.err)  # stderr is a pipe
        return terminal.text

    def test_none_in_pipes(self):
        for command in ["generate", "compare"]:
            result = self.assert_ok(harp(command, *self.FLAGS))
            self.assertNotIn("\033", result.out + result.err)

    def test_on_terminal(self):
        for command in ["generate", "compare"]:
            with self.subTest(command=command):
                text = self.on_terminal(command)
                self.assertIn("\033[38;5;", text)
                self.assertEqual(text.count("\033[0m") > 0, True)
                self.assertGreater(text.rfind("\033[0m"), text.rfind("\033[38;5;"))  # the colour is reset at the end

    def test_same_text_on_terminal(self):
        flags = {"HARP_SCHEDULE": "lazy"}
        plain = re.sub(r"\033\[[0-9;]*m", "", self.on_terminal(**flags)).replace("\r\n", "\n")
        self.assertEqual(plain.strip(), self.assert_ok(harp("generate", *self.FLAGS, env=flags)).out.strip())

    def test_refused(self):
        for env in [{"NO_COLOR": "1"}, {"TERM": "dumb"}]:
            for command in ["generate", "compare"]:
                with self.subTest(env=env, command=command):
                    self.assertNotIn("\033", self.on_terminal(command, **env))

    def test_progress_on_a_dumb_terminal(self):
        for term, erases in [("dumb", False), ("xterm", True)]:
            with self.subTest(term=term):
                master, slave = pty.openpty()
                subprocess.run([HARP, "generate", "-m", str(TINY), "-p", "Once", "-n", "2", "-t", "1"],
                               env=environment(TERM=term), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=slave, timeout=TIMEOUT)
                os.close(slave)
                text = b""
                try:
                    while piece := os.read(master, 65536):
                        text += piece
                except OSError:  # Linux says so when the other end is closed
                    pass
                os.close(master)
                self.assertEqual(b"\033[K" in text, erases, text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
