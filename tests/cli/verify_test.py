#!/usr/bin/env python3
"""harp verify: recordings as files and pipes, and those that cannot be replayed."""

import json
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from command_line import CliTest, OK, TIMEOUT, USAGE, harp
from programs import HARP, SHARED, TINY, environment, needs_tiny

GOLDEN = SHARED / "golden"
STEPS, BEAMS = GOLDEN / "stories260K.once.vanilla-stop426.json", GOLDEN / "stories260K.once.beam3-stop426.json"


@needs_tiny
@unittest.skipUnless(STEPS.is_file() and BEAMS.is_file(), f"no {STEPS} or no {BEAMS}")
class Verify(CliTest):
    def test_pipes(self):
        done = subprocess.run(["bash", "-c", '"$0" verify -m "$1" <(cat "$2") <(cat "$3")', HARP, TINY, STEPS, BEAMS], capture_output=True,
                              text=True, timeout=TIMEOUT, env=environment(), check=False)
        self.assertEqual((done.returncode, done.stdout.count("PASS")), (OK, 2), done)

    def test_empty(self):
        empty = self.folder / "empty.json"
        empty.touch()
        self.assert_fault(harp("verify", "-m", str(TINY), str(empty)), USAGE, "empty.json: empty")
        self.assert_fault(harp("verify", "-m", str(TINY), str(self.folder)), USAGE, str(self.folder), "cannot be read")

    def test_recordings_of_another_model_are_refused_before_the_first_replay(self):
        for recording in (STEPS, BEAMS):
            other = self.folder / "other.json"
            content = json.loads(recording.read_text())
            content["n_vocab"] = 513
            other.write_text(json.dumps(content))
            for flags in ([], ["--json"]):
                self.assert_fault(harp("verify", "-m", str(TINY), str(STEPS), str(other), *flags), USAGE, "other.json",
                                  "n_vocab: recorded with 513, the model has 512")


if __name__ == "__main__":
    unittest.main(verbosity=2)
