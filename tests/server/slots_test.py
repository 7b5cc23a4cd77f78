#!/usr/bin/env python3
"""Slots of harp-server: saved and restored, shifted, continued from checkpoints.

Finds the programs through HARP_SERVER_BINARY and HARP_BINARY, the tiny model through HARP_SHARED_DATA and SmolLM2 through
HARP_TEST_MODELS; tests whose model is missing are skipped.
"""

import sys
import tempfile
import unittest
import urllib.error
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import MODELS, needs_tiny
from running_server import EXACT, Server
from server_answers import TEXT, generate
from tiny_command import PROMPTS

GEMMA = MODELS / "gemma-3-270m-Q4_K_M.gguf"
HYBRID = MODELS / "random-lfm2.gguf"
WINDOW = MODELS / "random-gemma3.gguf"


@needs_tiny
class Memory(unittest.TestCase):
    """What the server does to a slot's cache, it also does to its twins."""

    def start(self, *flags):
        server = Server("-np", "1", *EXACT, *flags)
        self.addCleanup(server.stop)
        return server

    def test_saved_and_restored_slot(self):
        with tempfile.TemporaryDirectory() as folder:
            server = self.start("-c", "512", "--slot-save-path", folder, "--cache-ram", "0")
            first = server.complete(PROMPTS[0], n=24)
            longer = PROMPTS[0] + first + " and"
            expected = server.complete(longer)
            server.complete(PROMPTS[0], n=24)
            self.assertGreater(server.post("/slots/0?action=save", {"filename": "a.bin"})["n_saved"], 24)
            server.complete(PROMPTS[1])
            self.assertGreater(server.post("/slots/0?action=restore", {"filename": "a.bin"})["n_restored"], 24)
            answer = server.post("/completion", {"prompt": longer, "n_predict": 48, "temperature": 0})
            self.assertGreater(answer["timings"]["cache_n"], 24)
            self.assertEqual(answer["content"], expected)
            saved = bytearray((Path(folder) / "a.bin").read_bytes())
            saved[len(saved) // 2] ^= 0x40
            (Path(folder) / "a.bin").write_bytes(saved)
            with self.assertRaises(urllib.error.HTTPError) as caught:
                server.post("/slots/0?action=restore", {"filename": "a.bin"})
            self.assertEqual(caught.exception.code, 400)
            self.assertEqual(server.complete(longer), expected)

    def test_context_shift(self):
        server = self.start("-c", "256", "--context-shift")
        off = self.start("-c", "256", "--context-shift", "--harp-off")
        ask = {"prompt": PROMPTS[0], "n_predict": 400, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        shifted = server.post("/completion", ask)
        self.assertTrue(shifted["truncated"])
        self.assertEqual(shifted["timings"]["harp"]["steps"], 400)
        self.assertEqual(server.post("/completion", ask)["content"], shifted["content"])
        vanilla = off.post("/completion", ask)["content"]
        self.assertEqual(server.post("/completion", {**ask, "harp": {"enabled": False}})["content"], vanilla)
        self.assertNotEqual(shifted["content"], vanilla)
        self.assertEqual(server.complete(PROMPTS[1]), generate(PROMPTS[1]))

    @unittest.skipUnless(WINDOW.is_file(), f"no {WINDOW}")
    def test_restored_slot_of_a_sliding_window(self):
        """A file holds only the window. What it does not cover is read anew, even with --swa-full."""
        with tempfile.TemporaryDirectory() as folder:
            server = Server("-np", "2", "-c", "1024", "--swa-full", "--slot-save-path", folder, *EXACT, model=WINDOW)
            try:
                ask = {"prompt": TEXT, "n_predict": 8, "temperature": 0, "cache_prompt": True}
                first = server.post("/completion", {**ask, "id_slot": 1})
                server.post("/slots/1?action=save", {"filename": "slot"})
                server.post("/slots/0?action=restore", {"filename": "slot"})
                self.assertEqual(server.post("/completion", {**ask, "id_slot": 0})["content"], first["content"])
            finally:
                server.stop()


class Checkpoints(unittest.TestCase):
    """If memory cannot be cut, the server goes back to a checkpoint of part of it, and the twins must go back too."""

    def second_answer_is_as_of_a_fresh_server(self, model, text, n_said, n_ctx, delta):
        def start():  # small batches, so that few tokens fill a sliding window's cache and checkpoints are close together
            server = Server("-np", "1", "-c", str(n_ctx), "-b", "64", "-ub", "64", *EXACT, model=model)
            self.addCleanup(server.stop)
            return server

        options = {"n_predict": 8, "ignore_eos": True, "temperature": 0, "harp": {"threshold": 0.5}, "n_probs": 8}
        server = start()
        first = server.post("/completion", {**options, "prompt": text + " Who is she?", "n_predict": n_said})
        self.assertGreater(first["timings"]["harp"]["hesitations"], 0)
        ask = {**options, "prompt": text + " Where does it run?"}
        second = server.post("/completion", ask)
        self.assertGreater(second["timings"]["cache_n"], 0)
        self.assertGreater(second["timings"]["harp"]["hesitations"], 0)
        fresh = start().post("/completion", ask)
        for one, other in zip(second["completion_probabilities"], fresh["completion_probabilities"], strict=True):
            others = {token["id"]: token["logprob"] for token in other["top_logprobs"]}
            for token in one["top_logprobs"][:2]:
                self.assertAlmostEqual(token["logprob"], others[token["id"]], delta=delta)
            if one["id"] != other["id"]:
                break  # two tokens were as probable, and rounding chose

    @unittest.skipUnless(GEMMA.is_file(), f"no {GEMMA}")
    def test_sliding_window(self):
        # the answer moves the window of 512 tokens beyond what the second prompt needs; other batch sizes are rounded differently
        self.second_answer_is_as_of_a_fresh_server(GEMMA, TEXT * 7, n_said=270, n_ctx=1024, delta=0.3)

    @unittest.skipUnless(HYBRID.is_file(), f"no {HYBRID}")
    def test_recurrent_layers(self):
        self.second_answer_is_as_of_a_fresh_server(HYBRID, TEXT, n_said=32, n_ctx=1024, delta=0.01)


if __name__ == "__main__":
    unittest.main(verbosity=2)
