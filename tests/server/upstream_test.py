#!/usr/bin/env python3
"""llama.cpp's own server tests with HARP off and on, without those that take long or generate nothing. For all of them: upstream/suite.py.

A test may fail only if upstream/known.txt says why. Finds the program and the models like server_test.py.
"""

import importlib.util
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "upstream"))
import suite

LEFT_OUT = ["mcp_servers", "router", "security", "sleep", "stream", "template", "tool_call", "tools_builtin"]
NEEDED = [suite.TINY, suite.LLAMA_MODELS, suite.SOURCE / "tools/server/tests"]


@unittest.skipUnless(all(map(importlib.util.find_spec, ("pytest", "pytest_timeout", "prometheus_client"))), "pytest is not installed")
@unittest.skipUnless(all(path.exists() for path in NEEDED), "not all of " + ", ".join(map(str, NEEDED)))
class Upstream(unittest.TestCase):
    def no_unknown_end(self, server):
        with tempfile.TemporaryDirectory() as folder:
            ends = suite.run(server, ["unit", *(f"--ignore=unit/test_{name}.py" for name in LEFT_OUT)], Path(folder))
        self.assertGreater(sum(end == "passed" for end, _ in ends.values()), 200)
        self.assertEqual(suite.judge(server, ends, suite.read_known()), [])

    def test_harp_off(self):
        self.no_unknown_end("harp-off")

    def test_harp_on(self):
        self.no_unknown_end("harp-on")


if __name__ == "__main__":
    unittest.main(verbosity=2)
