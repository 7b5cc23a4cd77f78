#!/usr/bin/env python3
"""Echoed prompts of harp-server: log-probabilities are those of `harp score`.

Finds the programs through HARP_SERVER_BINARY and HARP_BINARY, the tiny model through HARP_SHARED_DATA and SmolLM2 through
HARP_TEST_MODELS; tests whose model is missing are skipped.
"""

import json
import sys
import unittest
import urllib.error
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import needs_tiny
from running_server import OneServer
from server_answers import TEXT
from tiny_command import PROMPTS, scored


@needs_tiny
class Echo(OneServer, unittest.TestCase):
    def echo(self, prompt, **more):
        answer = self.server.post("/v1/completions", {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 0, **more})
        return answer["choices"] if isinstance(prompt, list) and isinstance(prompt[0], (str, list)) else answer["choices"][0]

    def test_echo_is_the_score_of_the_command(self):
        negative = "The cat sat on a mat."
        guided = ["--harp-view", "guidance", "--harp-beta", "1.5", "--harp-negative-prompt", negative]
        for options, flags in [({}, []), ({"enabled": False}, ["--harp-off"]), ({"beta": 0.1}, ["--harp-beta", "0.1"]),
                               ({"view": "guidance", "beta": 1.5, "negative_prompt": negative}, guided),
                               ({"scope": "generated"}, ["--harp-scope", "generated"]), ({"redraw": 1}, ["--harp-redraw", "1"]),
                               ({"perturbation": "uniform", "strength": 5}, ["--harp-perturbation", "uniform", "--harp-strength", "5"])]:
            with self.subTest(options=options):
                choice = self.echo(TEXT, harp=options)
                said = choice["logprobs"]["token_logprobs"]
                score = scored(TEXT, "-c", "512", *flags)
                self.assertEqual(len(said), score["tokens"] + 1)
                self.assertIsNone(said[0])
                kind = "vanilla" if flags == ["--harp-off"] else "harp"
                self.assertAlmostEqual(-sum(said[1:]), score[kind]["mean"] * score["tokens"], places=3)
                self.assertEqual(sum(map(bool, choice["logprobs"]["hesitated"])), score.get("hesitations", 0))

    def test_echo_has_the_legacy_shape(self):
        choice = self.echo(TEXT)
        logprobs = choice["logprobs"]
        self.assertEqual(choice["text"].strip(), TEXT)
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual({len(column) for column in logprobs.values()}, {len(logprobs["tokens"])})
        for token, offset in list(zip(logprobs["tokens"], logprobs["text_offset"]))[1:]:  # the first token is begin-of-sequence
            self.assertTrue(choice["text"][offset:].startswith(token), (token, offset))
        for top, logprob in list(zip(logprobs["top_logprobs"], logprobs["token_logprobs"]))[1:]:
            self.assertIn(len(top), (1, 2, 3))
            self.assertGreaterEqual(max(top.values()), logprob)
        more = self.echo(TEXT, max_tokens=2)
        self.assertEqual(len(more["logprobs"]["tokens"]), len(logprobs["tokens"]) + 2)
        self.assertEqual(more["logprobs"]["token_logprobs"][:-2], logprobs["token_logprobs"])
        self.assertEqual(more["text"][:len(choice["text"])], choice["text"])
        self.assertEqual(self.echo(TEXT, logprobs=None)["logprobs"], None)

    def test_echo_of_many_prompts(self):
        texts = [TEXT, *PROMPTS]
        ids = [self.server.post("/tokenize", {"prompt": text})["tokens"] for text in texts]
        alone = [self.echo(text) for text in texts]
        self.assertEqual([choice["text"] for choice in self.echo(texts)], [choice["text"] for choice in alone])
        for choice, one in zip(sorted(self.echo([*ids[:-1], texts[-1]]), key=lambda choice: choice["index"]), alone):
            for a, b in zip(choice["logprobs"]["token_logprobs"][1:], one["logprobs"]["token_logprobs"][1:], strict=True):
                self.assertAlmostEqual(a, b, places=3)

    def test_echo_refuses(self):
        for more, name in [({"stream": True}, "stream"), ({"n": 2}, '"n"')]:
            with self.subTest(more=more):
                with self.assertRaises(urllib.error.HTTPError) as caught:
                    self.server.post("/v1/completions", {"prompt": TEXT, "echo": True, "logprobs": 2, **more})
                self.assertEqual(caught.exception.code, 400)
                self.assertIn(name, json.load(caught.exception)["error"]["message"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
