"""Helpers for tests of the command line: runs of harp with exit code and output, programs on a pseudo-terminal."""

import json
import os
import pty
import re
import select
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from programs import HARP, TINY, environment

LOOKUP = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "5"]
STORY = "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park. One day a big dog came. "

OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130
OPTIONS = ["gate", "threshold", "beta", "plausibility", "view", "view_tokens", "perturbation", "strength", "reframings", "schedule",
           "redraw", "scope", "seed"]
PROGRESS = re.compile(r"(loading|prompt:|reading|answering|preparing|warming up|round|baseline|replaying|step|choosing|checking|[^ ]+: (reading|\d+ tokens)|\d+ of)")  # progress, which a slow machine shows
TIMEOUT = 60  # seconds; a hang is a failure


class Result:
    def __init__(self, code, out, err):
        self.code = code
        self.out = out.decode("utf-8", "replace")
        self.err = err.decode("utf-8", "replace")

    def __repr__(self):
        return f"exit {self.code}\n--- stdout\n{self.out[-1500:]}\n--- stderr\n{self.err[-1500:]}"


def harp(*args, stdin=b"", env=None, stdout=subprocess.PIPE, cwd=None):
    done = subprocess.run([HARP, *args], input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=TIMEOUT,
                          env=environment(**(env or {})), cwd=cwd, check=False)
    return Result(done.returncode, done.stdout or b"", done.stderr)


def generate(*args, model=TINY, prompt="Once upon a time", **kwargs):
    return harp("generate", "-m", str(model), "-p", prompt, *args, **kwargs)


class Terminal:
    """A program with some streams on a pseudo-terminal and the others in pipes."""

    def __init__(self, args, streams=("stdout",), env=None):
        self.master, slave = pty.openpty()
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        pipes.update({name: slave for name in streams})
        self.process = subprocess.Popen([HARP, *args], env=environment(**(env or {})), start_new_session=True, **pipes)
        os.close(slave)
        self.text = ""

    def _read(self, seconds):
        """Reads one piece of output. False at the end of output."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: the other end is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def wait_for(self, pattern, start=0):
        """Reads until `pattern` appears after offset `start`. @return the offset of its end"""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            found = re.compile(pattern).search(self.text, start)
            if found:
                return found.end()
            if not self._read(0.5):
                break
        raise AssertionError(f"no {pattern!r} in the terminal's output:\n{self.text[-2000:]}")

    def send(self, data):
        os.write(self.master, data.encode())

    def finish(self):
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end and self._read(0.5):
            if self.process.poll() is not None:
                while self._read(0) and select.select([self.master], [], [], 0)[0]:
                    pass
                break
        rest = [stream.read() if stream else b"" for stream in (self.process.stdout, self.process.stderr)]
        self.process.wait(timeout=TIMEOUT)
        self.close()
        return Result(self.process.returncode, *rest)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        if self.master is not None:
            os.close(self.master)
            self.master = None


class CliTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="harp-cli-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def terminal(self, *args, **kwargs):
        terminal = Terminal(args, **kwargs)
        self.addCleanup(terminal.close)
        return terminal

    def assert_ok(self, result):
        self.assertEqual(result.code, OK, result)
        return result

    def assert_fault(self, result, code, *names, output=False):
        """Expects the exit code, and exactly one line on standard error that contains `names`."""
        self.assertEqual(result.code, code, result)
        lines = [line for line in result.err.splitlines() if line.strip() and not PROGRESS.match(line)]
        self.assertEqual(len(lines), 1, f"not exactly one line\n{result}")
        for name in names:
            self.assertIn(name.lower(), lines[0].lower(), result)
        self.assertNotIn("\033", result.err)
        if not output:
            self.assertEqual(result.out, "", result)

    def assert_whole_json_lines(self, path):
        data = path.read_bytes()
        self.assertTrue(data.endswith(b"\n"), f"the trace ends within a line: {data[-100:]}")
        return [json.loads(line) for line in data.splitlines()]
