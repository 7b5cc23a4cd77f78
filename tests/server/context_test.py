#!/usr/bin/env python3
"""harp-server where the context ends or changes hands: full caches, checkpoints of sliding windows, copies between slots, second passes
that are longer than the text. The server goes on, and no request sees another's text.
"""

import concurrent.futures
import json
import re
import sys
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from adapters import write_adapter
from programs import MODELS, TINY, needs_tiny
from running_server import EXACT, Server

WINDOW = MODELS / "random-gemma3.gguf"  # sliding window of 16 tokens
HYBRID = MODELS / "random-lfm2.gguf"

GUIDED = {"view": "guidance", "beta": 1.5, "threshold": 0}


def n_tokens(server, text):
    return len(server.post("/tokenize", {"content": text})["tokens"])


def second_pass_rows(server):
    """Of a server that was started with --metrics."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        return int(re.search(r"^llamacpp:harp_second_pass_rows_total (\d+)$", answer.read().decode(), re.MULTILINE)[1])


class Context(unittest.TestCase):
    def start(self, *flags, model=TINY):
        server = Server(*EXACT, *flags, model=model)
        self.addCleanup(server.stop)
        return server

    def answers(self, server, prompt, n=12, **more):
        """Of one request, in one slot or more."""
        answer = server.post("/completion", {"prompt": prompt, "n_predict": n, "temperature": 0, **more})
        return [one["content"] for one in (answer if isinstance(answer, list) else [answer])]

    @needs_tiny
    def test_the_server_says_why_and_goes_on_after_a_full_cache(self):
        for flags in (["-kvu"], ["-kvu", "--harp-off"]):
            with self.subTest(flags=flags):
                server = self.start("-np", "2", "-c", "256", *flags)
                ask = {"n": 400, "ignore_eos": True}
                with concurrent.futures.ThreadPoolExecutor(2) as pool:
                    long = [pool.submit(self.answers, server, prompt, **ask) for prompt in ("The dog", "Once upon a time")]
                    errors = [one.exception(timeout=60) for one in long]
                said = [json.load(error)["error"]["message"] for error in errors if isinstance(error, urllib.error.HTTPError)]
                self.assertTrue(said, errors)
                for message in said:
                    self.assertEqual("harp: " in message, "--harp-off" not in flags, message)
                texts = [self.answers(server, "Tom and Sam", 4) for _ in range(3)]
                self.assertEqual(texts, [texts[0]] * 3)

    @unittest.skipUnless(WINDOW.is_file(), f"no {WINDOW}")
    def test_a_checkpoint_whose_last_token_is_replaced(self):
        """The slot has a checkpoint after start + [50]; the next text has another token there, and the third comes back to it."""
        start = [100 + i % 50 for i in range(20)]
        long = start + [60] + [70 + i % 90 for i in range(400)]
        last = start + [60, 61, 62, 63, 64, 65, 66]
        for flags in (["--harp-schedule", "lazy"], ["--harp-schedule", "fused"], ["--harp-off"]):
            with self.subTest(flags=flags):
                server = self.start("-np", "1", "-c", "512", "-b", "64", "-ub", "64", *flags, model=WINDOW)
                self.answers(server, start + [50, 51, 52, 53, 54], 2)
                self.answers(server, long, 2)
                answer = self.answers(server, last)
                self.assertEqual(answer, self.answers(server, last, cache_prompt=False))

    @unittest.skipUnless(WINDOW.is_file(), f"no {WINDOW}")
    def test_a_prompt_that_ends_where_a_checkpoint_does(self):
        """Its last token is read again, and the checkpoint lacks the first token of that one's window."""
        start = [100 + i % 50 for i in range(20)]
        for flags in (["--harp-schedule", "lazy"], ["--harp-schedule", "fused"], ["--harp-off"]):
            with self.subTest(flags=flags):
                server = self.start("-np", "1", "-c", "512", "-b", "64", "-ub", "64", *flags, model=WINDOW)
                self.answers(server, start + [50, 51, 52, 53, 54], 2)
                self.answers(server, start + [60] + [70 + i % 90 for i in range(400)], 2)
                answer = self.answers(server, start)
                self.assertEqual(answer, self.answers(server, start, cache_prompt=False))

    @unittest.skipUnless(HYBRID.is_file(), f"no {HYBRID}")
    def test_a_second_pass_that_needs_the_cells_of_an_idle_slot(self):
        """The cells are full when the first pass of a batch is done; recurrent state cannot go back before it."""
        flags = ["-np", "2", "-kvu", "-c", "256", "-b", "32", "-ub", "32", "--cache-ram", "0", "--harp-schedule", "lazy", "--harp-threshold", "0"]
        prompt = [20 + i * 7 % 400 for i in range(100)]
        alone = self.answers(self.start(*flags, model=HYBRID), prompt)
        server = self.start(*flags, model=HYBRID)
        self.answers(server, [30 + i * 11 % 400 for i in range(200)], 2, id_slot=0)
        self.assertEqual(self.answers(server, prompt, id_slot=1), alone)
        self.assertEqual(server.get("/slots")[0]["n_prompt_tokens"], 0)  # it was cleared

    @needs_tiny
    def test_drafts_that_do_not_fit_into_a_batch(self):
        """A text that repeats itself gets drafts of 48 tokens for each slot."""
        begin, rest = "One day, a girl named Sue", (" went to the park with her mom and her big dog. They saw a bird in a tree. The bird was sad and did "
                                                    "not sing. Sue said: I want to help you, little bird.")
        for n, flags in (1, ["-b", "32"]), (2, ["-b", "64"]):
            with self.subTest(n=n):
                server = self.start("-np", str(n), "-c", "1024", "--spec-type", "ngram-simple", *flags)
                ask = {"prompt": 3 * (begin + rest + " ") + begin, "n_predict": 200, "temperature": 0, "grammar": f'root ::= "{rest}"', "n_cmpl": n}
                answers = server.post("/completion", ask)
                for answer in answers if n > 1 else [answers]:
                    self.assertEqual(answer["content"], rest)
                    self.assertGreater(answer["timings"]["draft_n_accepted"], 10)

    @needs_tiny
    def test_what_was_read_with_another_adapter(self):
        adapter = self.folder() + "adapter.gguf"
        write_adapter(adapter)
        others = ["The dog ran to the park and the cat sat on the tree, and they were happy", "Tom and Sam were friends who liked to run"]
        text = "Once upon a time, there was a little girl named Lily. She liked to play"
        on, off = [{"id": 0, "scale": 1}], [{"id": 0, "scale": 0}]
        for flags in ([], ["--harp-off"]):
            server = self.start("-np", "2", "-c", "1024", "--lora", adapter, *flags)

            def ask(prompt=text, **more):
                return self.answers(server, prompt, id_slot=0, **more)

            answers = {scale: ask(lora=[{"id": 0, "scale": scale}], cache_prompt=False) for scale in (1, 0)}
            self.assertNotEqual(answers[1], answers[0])
            with self.subTest("a request that names none", flags=flags):
                self.assertEqual(ask(), answers[1])
            with self.subTest("a change of the default", flags=flags):
                server.post("/lora-adapters", off)
                self.assertEqual(ask(), answers[0])
                server.post("/lora-adapters", on)
                self.assertEqual(ask(), answers[1])
            with self.subTest("the prompt cache", flags=flags):
                for scale, other in (0, 1), (1, 0):
                    ask(lora=[{"id": 0, "scale": scale}])
                    for prompt in others:
                        ask(prompt, lora=[{"id": 0, "scale": other}])
                    self.assertEqual(ask(lora=[{"id": 0, "scale": other}]), answers[other])
            with self.subTest("the cache of the same adapters", flags=flags):
                for prompt in others:
                    ask(prompt, lora=off)
                answer = server.post("/completion", {"prompt": text, "n_predict": 12, "temperature": 0, "lora": on, "id_slot": 0})
                self.assertEqual([answer["content"]], answers[1])
                self.assertGreater(answer["timings"]["cache_n"], 8)

    @needs_tiny
    def test_adapters_that_are_not_there(self):
        adapter = self.folder() + "adapter.gguf"
        write_adapter(adapter)
        one = self.start("--lora", adapter)
        none = self.start()
        for server, id, allowed in (one, 1, "0..0"), (one, -1, "0..0"), (one, None, "whole numbers, 0..0"), (none, 0, "none"):
            for path in ("/completion", "/lora-adapters"):
                lora = [{"id": id, "scale": 1}]
                with self.subTest(path=path, id=id, allowed=allowed), self.assertRaises(urllib.error.HTTPError) as refused:
                    server.post(path, lora if path == "/lora-adapters" else {"prompt": "The dog", "n_predict": 1, "lora": lora})
                self.assertEqual(refused.exception.code, 400)
                self.assertIn("adapter: ", said := json.load(refused.exception)["error"]["message"])
                self.assertIn("allowed: " + allowed, said)

    @needs_tiny
    def test_a_copy_to_another_slot_does_not_come_late(self):
        """An answer of one token leaves a copy of its prompt pending, for a slot that is then restored."""
        server = self.start("-np", "2", "-c", "1024", "--slot-save-path", self.folder())
        text = "Once upon a time, there was a little girl named Lily. She liked to play"
        expected = self.answers(server, text, id_slot=1, cache_prompt=False)
        server.post("/slots/1?action=save", {"filename": "saved"})
        self.answers(server, "The dog ran to the park and the cat sat on the tree, and they were happy", 1, n_cmpl=2)
        server.post("/slots/1?action=restore", {"filename": "saved"})
        self.assertEqual(self.answers(server, text, id_slot=1), expected)

    @needs_tiny
    def test_a_request_for_a_slot_waits_until_it_is_free(self):
        """The slot's answer is not continued with what the prompt cache has for the request that waits."""
        texts = ["The dog ran to the park and the cat sat on the tree, and they were happy", "Once upon a time, there was a little girl"]
        long = {"prompt": texts[0], "n_predict": 400, "temperature": 0, "ignore_eos": True}
        for flags in ([], ["--harp-off"]):
            with self.subTest(flags=flags):
                server = self.start("-np", "2", "-c", "1024", *flags)
                alone = server.post("/completion", long)["content"]
                waiting = self.answers(server, texts[1], 8, id_slot=0)
                self.answers(server, "Tom and Sam were friends who liked to run", 8, id_slot=0)  # the others are in the cache now
                request = urllib.request.Request(server.url + "/completion", json.dumps({**long, "id_slot": 0, "stream": True}).encode())
                with concurrent.futures.ThreadPoolExecutor(1) as pool, urllib.request.urlopen(request, timeout=60) as stream:
                    parts = [json.loads(stream.readline()[6:])]  # it has begun
                    waits = pool.submit(self.answers, server, texts[1], 8, id_slot=0)
                    parts += [json.loads(line[6:]) for line in stream if line.startswith(b"data: ")]
                    self.assertEqual("".join(part["content"] for part in parts), alone)
                    self.assertEqual(waits.result(60), waiting)

    def folder(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return folder.name + "/"

    @needs_tiny
    def test_an_answer_ends_where_its_second_pass_has_no_room(self):
        ask = {"prompt": "Tom", "temperature": 0, "n_predict": 1000, "ignore_eos": True}
        negative = "The dog ran to the park and"
        for flags in ([], ["--context-shift"], ["--harp-schedule", "fused"], ["--spec-type", "ngram-simple"]):
            with self.subTest(flags=flags):
                server = self.start("-np", "1", "-c", "256", *flags)
                plain = server.post("/completion", {**ask, "harp": GUIDED})
                guided = server.post("/completion", {**ask, "harp": {**GUIDED, "negative_prompt": negative}})
                self.assertEqual((guided["stop_type"], guided["truncated"]), ("limit", True))
                if "--context-shift" not in flags:
                    n_more = n_tokens(server, negative) - n_tokens(server, "Tom")
                    self.assertEqual(guided["tokens_predicted"], plain["tokens_predicted"] - n_more)

    @needs_tiny
    def test_the_end_of_the_prompt_where_a_chunk_of_the_cache_moves(self):
        """A second pass reads as many rows as in a slot whose cache has nothing of the prompt."""
        before = "Once upon a time, there was a big red dog named Max who lived in a small house with his mom. "
        text = "Lily and Tom went to the park to play with a ball and they were very happy. Then the cat said"
        for harp in (GUIDED, {"scope": "generated", "threshold": 0}, {**GUIDED, "negative_prompt": "The cat sat on a mat"}):
            n_rows = []
            for cached in ("x", before + text):
                server = self.start("-np", "1", "-c", "512", "--metrics", "--harp-schedule", "lazy", "--cache-reuse", "8")
                self.answers(server, cached, 1, harp={"enabled": False})
                n_before = second_pass_rows(server)
                answer = server.post("/completion", {"prompt": text, "n_predict": 6, "temperature": 0, "ignore_eos": True, "harp": harp})
                n_rows.append(second_pass_rows(server) - n_before)
            with self.subTest(harp=harp):
                self.assertGreater(answer["timings"]["cache_n"], 8)
                self.assertEqual(n_rows[1], n_rows[0])


if __name__ == "__main__":
    unittest.main(verbosity=2)
