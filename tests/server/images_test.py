#!/usr/bin/env python3
"""Pictures with HARP on, through the OpenAI client: twins read them like the clean stream does.

Random vision encoders and models (scripts/make_random_gguf.py): one whose pictures attend to themselves, in a model with a sliding
window, like Gemma 3's, and one with positions of three dimensions, like Qwen2-VL's. Found through HARP_TEST_MODELS; tests whose models
are missing are skipped.
"""

import base64
import io
import json
import random
import struct
import sys
import unittest
import urllib.error
import zlib
from pathlib import Path

try:
    import openai
except ImportError:
    openai = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import MODELS
from running_server import EXACT, Server

N_TOKENS = 12


def png(width, height, seed):
    """A picture with random pixels."""
    pixels = random.Random(seed)
    rows = b"".join(b"\0" + pixels.randbytes(3 * width) for _ in range(height))
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(0, io.SEEK_END)
    for kind, content in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
                          (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return file.getvalue()


@unittest.skipIf(openai is None, "the Python package openai is not installed")
class Pictures:
    """Tests for each kind of model; subclasses name the model."""

    model = projector = ""

    def setUp(self):
        if openai is None:
            self.skipTest("the Python package openai is not installed")
        for name in (self.model, self.projector):
            if not (MODELS / name).is_file():
                self.skipTest(f"no {MODELS / name}")

    def start(self, *flags):
        server = Server("--mmproj", str(MODELS / self.projector), "-c", "1024", "-np", "1", "--image-max-tokens", "64", *EXACT,
                        *flags, model=MODELS / self.model)
        self.addCleanup(server.stop)
        return server

    def ask(self, server, picture, **harp):
        """(text, log-probabilities, usage)"""
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        url = "data:image/png;base64," + base64.b64encode(png(48, 32, picture)).decode()
        answer = client.chat.completions.create(
            model="any", temperature=0, max_tokens=N_TOKENS, logprobs=True, top_logprobs=1,
            extra_body={"ignore_eos": True, **({"harp": harp} if harp else {})},
            messages=[{"role": "user", "content": [{"type": "text", "text": "What is "},
                                                   {"type": "image_url", "image_url": {"url": url}},
                                                   {"type": "text", "text": " this?"}]}])
        entries = answer.choices[0].logprobs.content
        return answer.choices[0].message.content, [entry.logprob for entry in entries], answer.usage.model_dump()

    def assert_same(self, one, other, delta):
        self.assertEqual(one[0], other[0])
        self.assertEqual(len(one[1]), len(other[1]))
        for a, b in zip(one[1], other[1], strict=True):
            self.assertAlmostEqual(a, b, delta=delta)

    def test_twins_see_pictures(self):
        off = self.start("--harp-off")
        server = self.start("--harp-schedule", "lazy")
        plain = [self.ask(off, picture) for picture in (1, 2)]
        self.assertNotEqual(plain[0][1], plain[1][1])
        for picture, vanilla in zip((1, 2), plain, strict=True):
            with self.subTest(picture=picture):
                never = self.ask(server, picture, threshold="inf")
                self.assert_same(never, vanilla, delta=1e-6)
                unperturbed = self.ask(server, picture, threshold=0, strength=0)
                self.assertEqual(unperturbed[2]["harp"]["hesitations"], N_TOKENS)
                self.assert_same(unperturbed, vanilla, delta=1e-3)

    def test_hesitations_behind_a_picture(self):
        lazy = self.start("--harp-schedule", "lazy")
        fused = self.start("--harp-schedule", "fused")
        for scope in ("all", "generated"):
            with self.subTest(scope=scope):
                one, other = (self.ask(server, 1, threshold=0, scope=scope) for server in (lazy, fused))
                self.assertEqual(one[2]["harp"]["hesitations"], N_TOKENS)
                self.assert_same(one, other, delta=1e-3)
                self.assertNotEqual(one[1], self.ask(lazy, 1, threshold="inf")[1])
                # the same question again, which the server has already read, with another picture in between
                self.ask(lazy, 2, threshold=0, scope=scope)
                self.assert_same(self.ask(lazy, 1, threshold=0, scope=scope), one, delta=1e-3)

    def test_echo_of_a_text(self):
        """As without the projector; a prompt with a picture is refused."""
        server = self.start()
        without = Server("-c", "1024", "-np", "1", *EXACT, model=MODELS / self.model)
        self.addCleanup(without.stop)
        ask = {"prompt": "What is this?", "echo": True, "logprobs": 1, "max_tokens": 2, "temperature": 0}
        ids = without.post("/tokenize", {"prompt": ask["prompt"]})["tokens"]
        expected = without.post("/v1/completions", ask)["choices"][0]
        for prompt in (ask["prompt"], ids, [ask["prompt"], ids]):
            with self.subTest(prompt=prompt):
                for choice in server.post("/v1/completions", {**ask, "prompt": prompt})["choices"]:
                    self.assertEqual(choice["text"], expected["text"])
                    self.assertEqual(choice["logprobs"]["tokens"], expected["logprobs"]["tokens"])
                    for a, b in zip(choice["logprobs"]["token_logprobs"][1:], expected["logprobs"]["token_logprobs"][1:], strict=True):
                        self.assertAlmostEqual(a, b, places=3)
        picture = {"prompt_string": server.get("/props")["media_marker"],
                   "multimodal_data": [base64.b64encode(png(48, 32, 1)).decode()]}
        with self.assertRaises(urllib.error.HTTPError) as caught:
            server.post("/v1/completions", {**ask, "prompt": picture})
        with caught.exception as answer:
            self.assertIn("media", json.load(answer)["error"]["message"])


class SelfAttending(Pictures, unittest.TestCase):
    model, projector = "random-gemma3.gguf", "random-mmproj-gemma3.gguf"


class ThreeDimensions(Pictures, unittest.TestCase):
    model, projector = "random-qwen2vl.gguf", "random-mmproj-qwen2vl.gguf"


if __name__ == "__main__":
    unittest.main(verbosity=2)
