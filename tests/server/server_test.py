#!/usr/bin/env python3
"""Tests of harp-server: its answers are those of `harp generate`, alone and together with others; clients, errors, shutdown.

Finds the programs through HARP_SERVER_BINARY and HARP_BINARY, the tiny model through HARP_SHARED_DATA and SmolLM2 through
HARP_TEST_MODELS; tests whose model is missing are skipped.
"""

import concurrent.futures
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

try:
    import openai
    import pydantic
except ImportError:
    openai = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import HARP, MODELS, ROOT, SERVER, SMOL, TINY, environment, needs_smol, needs_tiny
from running_server import EXACT, OneServer, Server

T5 = MODELS / "random-t5.gguf"
GEMMA = MODELS / "gemma-3-270m-Q4_K_M.gguf"
HYBRID = MODELS / "random-lfm2.gguf"
WINDOW = MODELS / "random-gemma3.gguf"
BERT = MODELS / "random-bert.gguf"

PROMPTS = ["Once upon a time", "The little dog", "Lily and Tom went", "One day a bird", "There was a big tree",
           "Mom said to", "In the garden", "The sun was"]

# more tokens than one batch can echo (echo_rows_per_batch)
TEXT = ("Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big "
        "dog. The dog was brown and had a long tail. Lily wanted to play with it, but her mom said no. The dog ran to the tree "
        "and sat down. Then a small bird came and sang a song. Lily was happy and they all went home.")


def generate(prompt, *flags, n=48):
    """What the command answers to the same prompt, greedily."""
    done = subprocess.run([HARP, "generate", "-m", str(TINY), "-p", prompt, "-n", str(n), "--temp", "0", "--format", "raw",
                           "--json", *EXACT, *flags], env=environment(), capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)["text"]


def score_of(text, *flags):
    """The log-likelihood of a text by the command."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([HARP, "score", "-m", str(TINY), "-f", file.name, "-c", "512", "--json", *EXACT, *flags],
                              env=environment(), capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)


def metrics(server):
    """HARP's metrics from a server started with --metrics, as written."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        lines = [line.split() for line in answer.read().decode().splitlines() if line.startswith("llamacpp:harp_")]
    return {name.removeprefix("llamacpp:harp_"): value for name, value in lines}


def counters(server):
    return {name: float(value) for name, value in metrics(server).items()}


@needs_tiny
class Hesitating(OneServer, unittest.TestCase):
    flags = ["--metrics"]

    def test_answers_are_those_of_the_command(self):
        for prompt in PROMPTS[:3]:
            self.assertEqual(self.server.complete(prompt), generate(prompt))

    def test_a_request_ends_with_the_server(self):
        server = Server("-c", "4096", *EXACT)
        ask = {"prompt": PROMPTS[0], "n_predict": 4000, "ignore_eos": True, "temperature": 0}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.post, "/completion", ask)
            while not any(slot["is_processing"] for slot in server.get("/slots")):
                time.sleep(0.01)
            code, output = server.stop()
            self.assertEqual(code, 0, output)
            error = answer.exception(timeout=10)
        self.assertEqual(error.code, 503)
        self.assertIn("shutting down", json.load(error)["error"]["message"])

    def test_many_at_once_are_as_alone(self):
        alone = [self.server.complete(prompt, cache_prompt=False) for prompt in PROMPTS]
        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            together = list(pool.map(self.server.complete, PROMPTS))
        self.assertEqual(together, alone)

    def test_a_conversation_is_as_read_anew(self):
        """What a slot keeps of earlier turns, whatever their options, must not change the answer."""
        kinds = [{}, {"redraw": 2}, {"scope": "generated"}, {"scope": "generated", "redraw": 1}, {"seed": 5},
                 {"view": "guidance", "beta": 2}, {"view": "last", "beta": 2}, {"view": "guidance", "beta": 2, "negative_prompt": "Tom"}]
        for earlier in kinds:
            for options in kinds:
                with self.subTest(earlier=earlier, options=options):
                    first = self.server.complete(PROMPTS[3], n=24, harp=earlier, id_slot=2, cache_prompt=False)
                    ask = {"prompt": PROMPTS[3] + first + " and", "n": 24, "harp": options, "id_slot": 2}
                    cached = self.server.complete(**ask)
                    self.assertEqual(cached, self.server.complete(**ask, cache_prompt=False))

    def test_cached_prompt_gives_the_same(self):
        first = self.server.complete(PROMPTS[0], id_slot=1)
        self.server.complete(PROMPTS[0] + first + " and", id_slot=1)
        self.assertEqual(self.server.complete(PROMPTS[0], id_slot=1), first)

    def test_clients_that_hang_up(self):
        body = json.dumps({"prompt": "Once", "n_predict": 400, "stream": True, "ignore_eos": True}).encode()
        head = f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
                connection.sendall(head.encode() + body)
                connection.recv(64)
        self.assertEqual(self.server.complete(PROMPTS[0]), generate(PROMPTS[0]))

    def test_bad_requests(self):
        for body, code in [(b"{", 500), (b'{"prompt": 5.5}', 400), (b'{"messages": "x"}', 400)]:
            request = urllib.request.Request(self.server.url + "/v1/completions", body, {"Content-Type": "application/json"})
            with self.subTest(body=body), self.assertRaises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=30)
            self.assertIn(caught.exception.code, (400, code))
            caught.exception.close()

    def test_options_of_a_request(self):
        prompt = PROMPTS[0]
        changed = {"beta": 0.1, "threshold": 0.2, "seed": 3, "redraw": 2}
        flags = [part for name, value in changed.items() for part in (f"--harp-{name}", str(value))]
        for harp_object, as_flags in [({"enabled": False}, ["--harp-off"]), (changed, flags), ({}, []),
                                      ({"perturbation": "gaussian", "strength": 1.5},
                                       ["--harp-perturbation", "gaussian", "--harp-strength", "1.5"]),
                                      ({"view": "last", "view_tokens": 4, "beta": 3, "threshold": 0.1},
                                       ["--harp-view", "last", "--harp-view-tokens", "4", "--harp-beta", "3", "--harp-threshold", "0.1"]),
                                      ({"view": "guidance", "beta": 4, "threshold": 0, "plausibility": 0.1, "negative_prompt": "Tom"},
                                       ["--harp-view", "guidance", "--harp-beta", "4", "--harp-threshold", "0", "--harp-plausibility",
                                        "0.1", "--harp-negative-prompt", "Tom"]),
                                      ({"gate": "ratio", "threshold": 0.3}, ["--harp-gate", "ratio", "--harp-threshold", "0.3"]),
                                      ({"threshold": "inf"}, ["--harp-off"])]:
            with self.subTest(harp=harp_object):
                self.assertEqual(self.server.complete(prompt, harp=harp_object), generate(prompt, *as_flags))

    def test_little_room_for_the_second_pass(self):
        last = {"view": "last", "beta": 3, "threshold": 0.1}
        guided = {"view": "guidance", "beta": 3, "threshold": 0.1}
        server = Server("-c", "2048", "-np", "4", "--kv-unified", *EXACT, "--harp-view", "last", "--harp-n-ctx-twin", "20")
        self.addCleanup(server.stop)
        self.assertEqual(server.complete(PROMPTS[0], n=12, harp=last), self.server.complete(PROMPTS[0], n=12, harp=last))
        self.assertEqual(server.complete(PROMPTS[0], n=12, harp=guided), self.server.complete(PROMPTS[0], n=12, harp=guided))
        answer = server.post("/completion", {"prompt": PROMPTS[0], "n_predict": 100, "temperature": 0, "ignore_eos": True, "harp": guided})
        self.assertEqual(answer["stop_type"], "limit")
        self.assertTrue(15 <= answer["tokens_predicted"] <= 20, answer["tokens_predicted"])
        with self.assertRaises(urllib.error.HTTPError) as refused:
            server.post("/completion", {"prompt": PROMPTS[0], "n_predict": 4, "harp": {"view": "perturbed"}})
        self.assertEqual(refused.exception.code, 400)
        self.assertIn("n_ctx_twin", json.load(refused.exception)["error"]["message"])
        self.assertEqual(server.complete(PROMPTS[0], n=12, harp=last), self.server.complete(PROMPTS[0], n=12, harp=last))

    def test_negative_prompt_of_a_chat(self):
        """A text is treated as a user's message behind the system's, and gets the prompt's template."""
        def ask(system=(), **harp):
            body = {"messages": [*system, {"role": "user", "content": "A dog"}], "max_tokens": 24, "temperature": 0, "logprobs": True,
                    "harp": {"view": "guidance", "beta": 3, "threshold": 0, **harp}}
            choice = self.server.post("/v1/chat/completions", body)["choices"][0]
            return choice["message"]["content"], [round(entry["logprob"], 3) for entry in choice["logprobs"]["content"]]

        text, messages = ask(negative_prompt="A cat"), ask(negative_prompt=[{"role": "user", "content": "A cat"}])
        self.assertEqual(text, messages)
        self.assertNotEqual(text, ask())
        self.assertEqual(ask(negative_prompt=""), ask())
        system = [{"role": "system", "content": "You are a bird."}, {"role": "system", "content": "You sing."}]
        text, messages = ask(system, negative_prompt="A cat"), ask(system, negative_prompt=[*system, {"role": "user", "content": "A cat"}])
        self.assertEqual(text, messages)
        self.assertNotEqual(text, ask(system, negative_prompt=[{"role": "user", "content": "A cat"}]))
        text = ask(negative_prompt="A cat")
        for harp, message in [({"negative_prompt": 5}, "negative_prompt"), ({"negative_prompt": "x", "view": "last"}, "guidance"),
                              ({"negative_prompt": "x " * 9000}, "negative prompt"), ({"negative_prompt": [5]}, ""),
                              ({"negative_prompt": []}, "negative_prompt: [] has no messages")]:
            with self.subTest(harp=str(harp)[:60]), self.assertRaises(urllib.error.HTTPError) as caught:
                ask(**harp)
            self.assertEqual(caught.exception.code, 400)
            self.assertIn(message, caught.exception.read().decode())
            caught.exception.close()
        self.assertEqual(ask(negative_prompt="A cat"), text)

    def test_default_negative_prompt(self):
        """It holds for requests with view guidance and none of their own, in the prompt's format."""
        def answers(server, harp):
            body = {"max_tokens": 12, "temperature": 0, "harp": harp}
            chat = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "A dog"}], **body})
            text = server.post("/v1/completions", {"prompt": "A dog", **body})
            return chat["choices"][0]["message"]["content"], text["choices"][0]["text"]

        guided = {"view": "guidance", "beta": 3, "threshold": 0}
        own = answers(self.server, {**guided, "negative_prompt": "A cat"})
        plain = answers(self.server, guided)
        last = answers(self.server, {**guided, "view": "last"})
        self.assertTrue(all(a != b for a, b in zip(own, plain)))
        for flags in ([], ["--harp-view", "guidance"]):
            with self.subTest(flags=flags):
                server = Server("-c", "2048", *EXACT, *flags, "--harp-negative-prompt", "A cat")
                self.addCleanup(server.stop)
                self.assertEqual(server.get("/props")["harp"]["negative_prompt"], "A cat")
                self.assertEqual(answers(server, guided), own)
                self.assertEqual(answers(server, {**guided, "negative_prompt": ""}), plain)
                self.assertEqual(answers(server, {**guided, "negative_prompt": None}), plain)
                self.assertEqual(answers(server, {**guided, "view": "last"}), last)
                if flags:
                    self.assertEqual(answers(server, {"beta": 3, "threshold": 0}), own)

    def test_metrics(self):
        before = counters(self.server)
        counts = self.server.post("/completion", {"prompt": PROMPTS[1], "n_predict": 24, "temperature": 0})["timings"]["harp"]
        grown = {name: value - before[name] for name, value in counters(self.server).items()}
        self.assertEqual(grown["steps_total"], counts["steps"])
        self.assertEqual(grown["hesitations_total"], counts["hesitations"])
        self.assertGreater(grown["second_pass_rows_total"], 0)
        # a fused step without hesitation has a second pass too, which is no token's
        self.assertGreaterEqual(grown["second_pass_seconds_total"], counts["second_pass_seconds"] - 1e-9)
        # all digits: with six, a counter that is large does not grow
        digits = metrics(self.server)["second_pass_seconds_total"].split("e")[0].replace(".", "").lstrip("0")
        self.assertGreater(len(digits), 8)

    def test_metrics_go_on_after_a_sleep(self):
        server = Server("-np", "1", "-c", "512", "--metrics", "--sleep-idle-seconds", "1", *EXACT)
        self.addCleanup(server.stop)
        self.assertEqual(counters(server), dict.fromkeys(counters(self.server), 0))  # what loading decoded is no answer
        server.complete(PROMPTS[0], n=8)
        before = counters(server)
        deadline = time.monotonic() + 30
        while not server.get("/props")["is_sleeping"]:
            self.assertLess(time.monotonic(), deadline, "it does not sleep")
            time.sleep(0.05)
        self.assertEqual(counters(server), before)
        server.complete(PROMPTS[0], n=8)
        after = counters(server)
        self.assertEqual(after["steps_total"], before["steps_total"] + 8)
        for name, value in after.items():
            self.assertGreaterEqual(value, before[name], name)

    def test_requests_with_other_options_share_batches(self):
        asked = [(prompt, {"enabled": i % 3 != 0, "beta": 0.25 * (i % 4), "seed": i}) for i, prompt in enumerate(PROMPTS)]
        alone = [self.server.complete(prompt, harp=options, cache_prompt=False) for prompt, options in asked]
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(lambda ask: self.server.complete(ask[0], harp=ask[1]), asked))
        self.assertEqual(together, alone)

    def test_bad_options_of_a_request(self):
        for harp_object, names in [({"beta": 9}, ["beta", "9", "0..8"]), ({"betta": 1}, ["betta", "beta"]),
                                   ({"enable": False}, ["unknown option 'enable' (did you mean 'enabled'?)"]),
                                   ({"foo": [1]}, ["unknown option 'foo'", "known: enabled, negative_prompt, gate"]),
                                   (5, ["harp", "5"]),
                                   ({"enabled": 1}, ["harp.enabled", "true, false"]), ({"beta": [1]}, ["harp.beta", "[1]"]),
                                   ({"reframings": 2}, ["reframings", "2", "1..1"]), ({"schedule": "lazy"}, ["schedule"]),
                                   ({"threshold": "x"}, ["threshold", "'x'"]), ({"strength": -1}, ["strength", "-1"])]:
            for path in ["/completion", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"]:
                body = {"prompt": "Once", "messages": [{"role": "user", "content": "Once"}], "input": "Once", "model": "x",
                        "max_tokens": 2, "harp": harp_object}
                with self.subTest(harp=harp_object, path=path), self.assertRaises(urllib.error.HTTPError) as caught:
                    self.server.post(path, body)
                self.assertEqual(caught.exception.code, 400)
                message = json.load(caught.exception)["error"]["message"]
                for name in names:
                    self.assertIn(name, message)
                if "known" in message:
                    self.assertNotIn("schedule", message)

    def test_entropies_and_counts(self):
        ask = {"prompt": PROMPTS[0], "n_predict": 24, "temperature": 0, "n_probs": 1}
        answer = self.server.post("/completion", ask)
        tokens = answer["completion_probabilities"]
        self.assertEqual(len(tokens), 24)
        for token in tokens:
            self.assertEqual(token["hesitated"], token["entropy"] > 1)
        counts = {"steps": 24, "hesitations": sum(token["hesitated"] for token in tokens)}
        self.assertGreater(counts["hesitations"], 0)
        self.assertGreaterEqual(answer["timings"]["harp"].pop("second_pass_seconds"), 0)  # a fused twin can be free
        self.assertEqual(answer["timings"]["harp"], counts)
        ask = {"prompt": PROMPTS[0], "max_tokens": 24, "temperature": 0}
        usage = self.server.post("/v1/completions", ask)["usage"]["harp"]
        self.assertEqual({name: usage[name] for name in counts}, counts)
        never = self.server.post("/v1/completions", {**ask, "harp": {"enabled": False}})["usage"]["harp"]
        self.assertEqual(never, {"steps": 24, "hesitations": 0, "second_pass_seconds": 0})
        self.assertEqual(self.server.get("/props")["harp"]["threshold"], 1)

    def test_vanilla_candidates(self):
        ask = {"prompt": PROMPTS[0], "n_predict": 24, "temperature": 0, "n_probs": 4}
        never = self.server.post("/completion", {**ask, "harp": {"enabled": False}})["completion_probabilities"]
        hesitating = self.server.post("/completion", ask)["completion_probabilities"]
        self.assertFalse([token for token in never if "vanilla_top_logprobs" in token])
        for token, vanilla in zip(hesitating, never):
            self.assertEqual("vanilla_top_logprobs" in token, token["hesitated"])
            if token["hesitated"]:  # the first one, before which both have read the same
                for one, other in zip(token["vanilla_top_logprobs"], vanilla["top_logprobs"], strict=True):
                    self.assertEqual((one["id"], one["token"], one["bytes"]), (other["id"], other["token"], other["bytes"]))
                    self.assertAlmostEqual(one["logprob"], other["logprob"], places=4)
                self.assertNotEqual(token["top_logprobs"], vanilla["top_logprobs"])
                break
        else:
            self.fail("nothing hesitated")

    def test_speculation_says_the_same(self):
        ask = {"prompt": PROMPTS[0], "n_predict": 64, "temperature": 0, "n_probs": 2}
        alone = self.server.post("/completion", ask)
        drafting = Server("-np", "1", "-c", "512", *EXACT, "--harp-schedule", "lazy",
                          "--spec-type", "ngram-simple", "--spec-draft-n-max", "4")
        self.addCleanup(drafting.stop)
        for _ in range(2):  # its first answer becomes the draft when it answers again
            drafted = drafting.post("/completion", ask)
        self.assertEqual(drafted["content"], alone["content"])
        counts = drafted["timings"]["harp"]
        self.assertGreater(counts.pop("second_pass_seconds"), 0)  # each lazy second pass is a call of its own
        self.assertEqual(counts, {name: alone["timings"]["harp"][name] for name in counts})
        for one, other in zip(drafted["completion_probabilities"], alone["completion_probabilities"], strict=True):
            self.assertEqual((one["id"], one["hesitated"]), (other["id"], other["hesitated"]))
            self.assertAlmostEqual(one["entropy"], other["entropy"], places=4)
            self.assertAlmostEqual(one["logprob"], other["logprob"], places=4)

    def test_rejected_drafts_get_no_second_pass(self):
        ask = {"prompt": "Lily saw a dog. The dog ran. Lily saw a cat. The cat ran. Lily saw a bird. The bird", "n_predict": 96,
               "temperature": 0, "ignore_eos": True}
        answers = []
        for speculation in [[], ["--spec-type", "ngram-simple", "--spec-draft-n-max", "4"]]:
            server = Server("-np", "1", "-c", "512", "--metrics", "--harp-threshold", "0", "--harp-schedule", "lazy", *EXACT,
                            *speculation)
            self.addCleanup(server.stop)
            answers.append((server.post("/completion", ask), counters(server)["second_pass_rows_total"]))
        (alone, rows_alone), (drafted, rows_drafted) = answers
        self.assertEqual(drafted["content"], alone["content"])
        n_rejected = drafted["timings"]["draft_n"] - drafted["timings"]["draft_n_accepted"]
        self.assertGreater(n_rejected, 4)
        self.assertLess(rows_drafted - rows_alone, n_rejected / 4)

    def test_drafts_of_many_slots_share_batches(self):
        prompts = [f"{name} saw a dog. The dog ran. {name} saw a cat. The cat ran. {name} saw a bird. The bird"
                   for name in ["Lily", "Tom", "Mom", "Ben"]]
        drafting = Server("-np", "4", "-c", "2048", "--spec-type", "ngram-simple", "--harp-threshold", "0.5", *EXACT)
        self.addCleanup(drafting.stop)
        ask = {"n": 96, "ignore_eos": True, "harp": {"threshold": 0.5}, "cache_prompt": False}
        alone = [self.server.complete(prompt, **ask) for prompt in prompts]
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            self.assertEqual(list(pool.map(lambda prompt: drafting.complete(prompt, **ask), prompts)), alone)

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
                score = score_of(TEXT, *flags)
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

    def test_tokenizer(self):
        info = self.server.get("/tokenizer_info")
        self.assertEqual((info["bos_token"], info["eos_token"]), ("<s>", "</s>"))
        with_bos = self.server.post("/tokenize", {"prompt": PROMPTS[0], "add_special_tokens": True})["tokens"]
        without = self.server.post("/tokenize", {"prompt": PROMPTS[0], "add_special_tokens": False})["tokens"]
        self.assertEqual(with_bos, [1, *without])
        for text in (PROMPTS[0], " " + PROMPTS[0], "", "two  words", "é 🦙", "a<unk>b<unk> c"):
            for special in (False, True):
                tokens = self.server.post("/tokenize", {"prompt": text, "add_special_tokens": special})["tokens"]
                self.assertEqual(self.server.post("/detokenize", {"tokens": tokens})["prompt"], "<s>" * special + text)
        self.assertEqual(self.server.post("/tokenize", {"content": PROMPTS[0]})["tokens"], without)

    def test_streams_of_several_prompts(self):
        for path, key in (("/v1/completions", "max_tokens"), ("/completion", "n_predict")):
            for prompts in (PROMPTS[:2], PROMPTS * 3):  # also more than there are slots
                with self.subTest(path=path, n=len(prompts)):
                    events = self.server.stream(path, {"prompt": prompts, key: 4, "temperature": 0, "stream": True})
                    self.assertNotIn(None, events)
                    self.assertTrue(events)

    def test_an_empty_stop_string_is_none(self):
        ask = {"prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        free = self.server.post("/v1/completions", ask)["choices"][0]["text"]
        for stop in ("", [""], ["", "\u0007never"]):
            with self.subTest(stop=stop):
                self.assertEqual(self.server.post("/v1/completions", {**ask, "stop": stop})["choices"][0]["text"], free)

    def test_no_token_is_asked_for(self):
        for path, name in [("/completion", "n_predict"), ("/v1/completions", "max_tokens")]:
            for n in (1, 2):
                with self.subTest(path=path, n=n):
                    said = self.server.post(path, {"prompt": PROMPTS[0], name: 0, "n": n, "logprobs": 1})
                    choices = said["choices"] if "choices" in said else said if isinstance(said, list) else [said]
                    self.assertEqual([choice.get("text", choice.get("content")) for choice in choices], [""] * n)
                    if "choices" in said:
                        self.assertEqual((said["usage"]["completion_tokens"], choices[0]["finish_reason"]), (0, "length"))
                        self.assertEqual(choices[0]["logprobs"]["tokens"], [])
            *_, last = self.server.stream(path, {"prompt": PROMPTS[0], name: 0})
            self.assertEqual(last["choices"][0]["finish_reason"] if "choices" in last else last["stop_type"],
                             "length" if "choices" in last else "limit")
        self.assertEqual(self.server.complete(PROMPTS[0]), generate(PROMPTS[0]))  # the slot works as before

    def test_usage_of_a_response(self):
        ask = {"input": "Hi", "max_output_tokens": 4, "temperature": 0}
        *_, last = self.server.stream("/v1/responses", ask)
        for usage in (self.server.post("/v1/responses", ask)["usage"], last["response"]["usage"]):
            self.assertEqual((usage["output_tokens"], usage["total_tokens"]), (4, usage["input_tokens"] + 4))
            self.assertEqual(usage["harp"]["steps"], 4)

    def test_a_response_has_one_answer(self):
        for more in ({"n": 2}, {"n_cmpl": 2}, {"n": 2, "stream": True}):
            with self.subTest(more=more):
                with self.assertRaises(urllib.error.HTTPError) as caught:
                    self.server.post("/v1/responses", {"input": "Hi", "max_output_tokens": 4, **more})
                self.assertEqual(caught.exception.code, 400)
                self.assertIn("'n'", json.load(caught.exception)["error"]["message"])
        self.assertEqual(self.server.post("/v1/responses", {"input": "Hi", "max_output_tokens": 4, "n": 1})["object"], "response")

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_openai_client_streams_a_response(self):
        client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(client.close)
        ask = {"model": "x", "input": "Hi", "max_output_tokens": 8, "temperature": 0}
        plain = client.responses.create(**ask)
        with client.responses.stream(**ask) as stream:
            events = list(stream)
        self.assertEqual([event.type for event in client.responses.create(**ask, stream=True)], [event.type for event in events])
        self.assertEqual(events[-1].type, "response.incomplete")
        streamed = events[-1].response
        self.assertEqual(streamed.output_text, plain.output_text)
        self.assertEqual("".join(event.delta for event in events if event.type == "response.output_text.delta"), plain.output_text)
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        for response in (plain, streamed):  # its limit cut it
            self.assertEqual((response.status, response.incomplete_details.reason), ("incomplete", "max_output_tokens"))
            self.assertEqual(response.output[0].status, "incomplete")
        ask |= {"max_output_tokens": 64, "text": {"format": {"type": "json_schema", "name": "answer", "schema": {"enum": ["yes", "no"]}}}}
        whole = client.responses.create(**ask)
        with client.responses.stream(**ask) as stream:
            self.assertEqual(stream.get_final_response().output_text, whole.output_text)
        self.assertIn(json.loads(whole.output_text), ["yes", "no"])
        self.assertEqual((whole.status, whole.incomplete_details), ("completed", None))

    def test_earlier_answers_in_a_response(self):
        """As in a chat. "message" is the default of "type"."""
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "A dog"}]
        chat = self.server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 16, "temperature": 0})
        for added in ({}, {"type": "message"}):
            response = self.server.post("/v1/responses", {"input": [message | added for message in messages], "max_output_tokens": 16,
                                                          "temperature": 0})
            self.assertEqual(response["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"])

    def test_messages_that_are_sent_back(self):
        """With null for what they have not, refusals, and reasoning that the model keeps to itself."""
        def chat(*more):
            messages = [{"role": "user", "content": "Hi"}, *more, {"role": "user", "content": "And then?"}]
            return self.server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0})["choices"][0]["message"]

        plain = {"role": "assistant", "content": "No."}
        nothing = dict.fromkeys(("name", "refusal", "tool_calls", "function_call", "audio", "reasoning_content", "tool_call_id"))
        self.assertEqual(chat({**plain, **nothing}), chat(plain))
        self.assertEqual(chat({**plain, "content": [{"type": "refusal", "refusal": "No."}]}), chat({**plain, "content": [{"type": "text", "text": "No."}]}))

        def respond(*more):
            items = [{"role": "user", "content": "Hi"}, *more, {"role": "user", "content": "And then?"}]
            return self.server.post("/v1/responses", {"input": items, "max_output_tokens": 8, "temperature": 0})["output"][0]["content"]

        kept = {"type": "reasoning", "id": "rs_1", "summary": []}
        for item in (kept, {**kept, "content": None, "encrypted_content": "x"}, {**kept, "content": []}):
            self.assertEqual(respond(item), respond())

    def test_reason_of_a_stop_sequence(self):
        ask = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16, "temperature": 0}
        free = self.server.post("/v1/messages", ask)
        stop = free["content"][0]["text"][4:8]
        self.assertEqual((free["stop_reason"], free["stop_sequence"]), ("max_tokens", None))
        said = self.server.post("/v1/messages", {**ask, "stop_sequences": [stop]})
        [streamed] = [event["delta"] for event in self.server.stream("/v1/messages", {**ask, "stop_sequences": [stop]})
                      if event["type"] == "message_delta"]
        for end in (said, streamed):
            self.assertEqual((end["stop_reason"], end["stop_sequence"]), ("stop_sequence", stop))

    def test_schema_of_a_message(self):
        """As Anthropic's client sends it, now and in its beta."""
        schema = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}}
        for fields in ({"output_config": {"format": schema}}, {"output_format": schema}):
            said = self.server.post("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 60, **fields})
            self.assertIn(json.loads(said["content"][0]["text"]), ({"a": 1}, {"a": 2}))
        ask = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "output_config": {"effort": "low", "format": None}}
        self.assertTrue(self.server.post("/v1/messages", ask)["content"][0]["text"])

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_one_model(self):
        """Its id has slashes, since it is the path."""
        for flags in ([], ["--alias", "tiny,other/name"]):
            server = self.server
            if flags:
                server = Server("-c", "256", *flags)
                self.addCleanup(server.stop)
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
            self.addCleanup(client.close)
            model = client.models.list().data[0]
            for name in [model.id] + ["other/name"] * bool(flags):
                self.assertEqual(client.models.retrieve(name).id, model.id)
            with self.assertRaises(openai.NotFoundError) as caught:
                client.models.retrieve("none/such")
            self.assertIn("none/such", caught.exception.message)

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_openai_client(self):
        client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(client.close)
        self.assertEqual(len(client.models.list().data), 1)
        said = client.completions.create(model="x", prompt=PROMPTS[0], max_tokens=48, temperature=0)
        self.assertEqual(said.choices[0].text, generate(PROMPTS[0]))
        parts = client.completions.create(model="x", prompt=PROMPTS[0], max_tokens=48, temperature=0, stream=True)
        self.assertEqual("".join(part.choices[0].text for part in parts if part.choices), said.choices[0].text)
        with self.assertRaises(openai.BadRequestError):
            client.completions.create(model="x", prompt=PROMPTS[0], max_tokens=4, extra_body={"n_probs": "many"})


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


@needs_tiny
class Off(OneServer, unittest.TestCase):
    flags = ["--harp-off", "--metrics"]

    def test_nothing_of_harp(self):
        self.assertEqual(counters(self.server), {})
        self.assertEqual(self.server.get("/props")["harp"], {"enabled": False})
        ask = {"prompt": PROMPTS[0], "max_tokens": 4, "temperature": 0}
        self.assertNotIn("harp", self.server.post("/v1/completions", {**ask, "harp": {"enabled": False}})["usage"])
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.server.post("/v1/completions", {**ask, "harp": {"enabled": True}})
        self.assertEqual(caught.exception.code, 400)
        self.assertIn("--harp-off", json.load(caught.exception)["error"]["message"])

    def test_is_vanilla(self):
        answers = [self.server.complete(prompt) for prompt in PROMPTS[:3]]
        self.assertEqual(answers, [generate(prompt, "--harp-off") for prompt in PROMPTS[:3]])
        self.assertNotEqual(answers, [generate(prompt) for prompt in PROMPTS[:3]])


@needs_smol
class Chat(OneServer, unittest.TestCase):
    model = SMOL

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_openai_client(self):
        client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(client.close)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        ask = {"model": "x", "messages": messages, "temperature": 0, "max_tokens": 24}
        said = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
        self.assertIn("Paris", said.choices[0].message.content)
        self.assertEqual(len(said.choices[0].logprobs.content[0].top_logprobs), 3)
        self.assertGreaterEqual(said.choices[0].logprobs.content[0].entropy, 0)
        self.assertEqual(said.usage.harp["steps"], said.usage.completion_tokens)
        off = client.chat.completions.create(**ask, extra_body={"harp": {"enabled": False}})
        self.assertEqual(off.usage.harp["hesitations"], 0)
        parts = client.chat.completions.create(**ask, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        self.assertEqual(text, said.choices[0].message.content)
        schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
        said = client.chat.completions.create(**ask, response_format={
            "type": "json_schema", "json_schema": {"name": "city", "schema": schema}})
        self.assertIsInstance(json.loads(said.choices[0].message.content)["city"], str)

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_tool_call(self):
        server = Server("-c", "1024", "--chat-template-file", str(ROOT / "tests/data/tools.jinja"), model=SMOL)
        self.addCleanup(server.stop)
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(client.close)
        weather = {"type": "function", "function": {
            "name": "get_weather", "description": "Weather now",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}}}
        messages = []  # two calls, as examples for a small model
        for city in ["Rome", "Oslo"]:
            call = {"name": "get_weather", "arguments": json.dumps({"city": city})}
            messages += [{"role": "user", "content": f"What is the weather in {city}?"},
                         {"role": "assistant", "content": "", "tool_calls": [{"id": city, "type": "function", "function": call}]},
                         {"role": "tool", "tool_call_id": city, "content": "sun"}, {"role": "assistant", "content": "Sun."}]
        messages.append({"role": "user", "content": "What is the weather in Paris?"})
        for harp_object in [{}, {"enabled": False}]:
            said = client.chat.completions.create(model="x", messages=messages, temperature=0, max_tokens=64, tools=[weather],
                                                  tool_choice="required", extra_body={"harp": harp_object})
            call = said.choices[0].message.tool_calls[0].function
            self.assertEqual((said.choices[0].finish_reason, call.name), ("tool_calls", "get_weather"))
            self.assertEqual(json.loads(call.arguments), {"city": "Paris"})
        other = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
        said = client.chat.completions.create(model="x", messages=messages, temperature=0, max_tokens=64, tools=[weather, other],
                                              tool_choice={"type": "function", "function": {"name": "get_time"}})
        self.assertEqual(said.choices[0].message.tool_calls[0].function.name, "get_time")
        tools = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in ("get_weather", "get_time")]
        ask = {"messages": messages[-1:], "tools": tools, "tool_choice": {"type": "tool", "name": "get_time"}}
        named, alone = (server.post("/v1/messages/count_tokens", ask | more)["input_tokens"] for more in ({}, {"tools": tools[1:]}))
        self.assertEqual(named, alone)  # the prompt has that tool alone
        items = []
        for message in messages:
            for call in message.get("tool_calls", []):
                items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
            items.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
                         if message["role"] == "tool" else message)
        ask = {"input": items, "max_output_tokens": 64, "temperature": 0, "tool_choice": "required",
               "tools": [{"type": "function", **weather["function"]}]}
        events = server.stream("/v1/responses", ask)
        for event in events:
            pydantic.TypeAdapter(openai.types.responses.ResponseStreamEvent).validate_python(event)
        for response in (server.post("/v1/responses", ask), events[-1]["response"]):
            response = openai.types.responses.Response.model_validate(response)
            self.assertEqual((response.tools[0].name, response.tool_choice), ("get_weather", "required"))
            self.assertEqual(json.loads(response.output[0].arguments), {"city": "Paris"})
        self.assertEqual([event["type"] for event in events][-3:],
                         ["response.function_call_arguments.done", "response.output_item.done", "response.completed"])
        self.assertEqual(json.loads(events[-3]["arguments"]), {"city": "Paris"})


@needs_tiny
class Router(unittest.TestCase):
    """A server for several models, which starts another server of its kind for each."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        (Path(cls.folder.name) / "tiny.gguf").symlink_to(TINY)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def ask(self, *flags):
        server = Server("--models-dir", self.folder.name, "-c", "512", *EXACT, *flags, model=None)
        try:
            return server.post("/completion", {"model": "tiny", "prompt": PROMPTS[0], "n_predict": 32, "temperature": 0})
        finally:
            code, output = server.stop()
            self.assertEqual(code, 0, output[-3000:])

    def test_one_model(self):
        server = Server("--models-dir", self.folder.name, model=None)
        self.addCleanup(server.stop)
        self.assertEqual(server.get("/v1/models/tiny")["id"], "tiny")
        with self.assertRaises(urllib.error.HTTPError) as caught:
            server.get("/v1/models/large")
        self.assertIn("'large'", json.load(caught.exception)["error"]["message"])

    def test_its_models_have_its_options(self):
        answer = self.ask("--harp-threshold", "0.3", "--harp-seed", "5")
        self.assertEqual(answer["content"], generate(PROMPTS[0], "--harp-threshold", "0.3", "--harp-seed", "5", n=32))
        self.assertGreater(answer["timings"]["harp"]["hesitations"], 0)

    def test_off(self):
        answer = self.ask("--harp-off")
        self.assertEqual(answer["content"], generate(PROMPTS[0], "--harp-off", n=32))
        self.assertNotIn("harp", answer["timings"])


@needs_tiny
class DefaultsThatDoNotFit(OneServer, unittest.TestCase):
    """What a request does not name must not make it fail: an option's own default replaces a server's that does not fit."""

    flags = ["--harp-reframings", "2", "--harp-perturbation", "gaussian", "--harp-strength", "5"]

    def test_requests(self):
        gaussian = ["--harp-perturbation", "gaussian"]
        for options, as_flags in [({"view": "last", "beta": 3}, ["--harp-view", "last", "--harp-beta", "3", *gaussian]),
                                  ({"view": "guidance"}, ["--harp-view", "guidance", *gaussian]),
                                  ({"perturbation": "dropout"}, ["--harp-reframings", "2"]),
                                  ({"view": "masked"}, ["--harp-view", "masked", "--harp-reframings", "2", *gaussian]),
                                  ({"perturbation": "uniform"},
                                   ["--harp-perturbation", "uniform", "--harp-strength", "5", "--harp-reframings", "2"]),
                                  ({}, self.flags)]:
            with self.subTest(harp=options):
                self.assertEqual(self.server.complete(PROMPTS[0], harp=options), generate(PROMPTS[0], *as_flags))

    def test_values_that_a_request_names(self):
        for options, name in [({"view": "last", "reframings": 2}, "reframings"), ({"view": "masked", "strength": 5}, "strength")]:
            with self.subTest(harp=options), self.assertRaises(urllib.error.HTTPError) as caught:
                self.server.complete(PROMPTS[0], harp=options)
            self.assertEqual(caught.exception.code, 400)
            self.assertIn(f"option '{name}'", caught.exception.read().decode())
            caught.exception.close()


@needs_tiny
class BackEndSampling(OneServer, unittest.TestCase):
    flags = ["--backend-sampling"]

    def test_sees_the_mixed_logits(self):
        body = {"prompt": PROMPTS[0], "n_predict": 32, "temperature": 0, "backend_sampling": True}
        self.assertEqual(self.server.post("/completion", body)["content"], generate(PROMPTS[0], n=32))


@needs_smol
class Documentation(OneServer, unittest.TestCase):
    """Runs the examples of docs/SERVER.md like a reader would."""

    model = SMOL

    def test_examples(self):
        text = (ROOT / "docs/SERVER.md").read_text()
        examples = re.findall(r"<!-- tested -->\n```(\w+)\n(.*?)```", text, re.DOTALL)
        self.assertEqual([language for language, _ in examples], ["sh", "python", "sh"])
        for language, code in examples:
            run = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
            if language == "sh" and not shutil.which("curl") or language == "python" and openai is None:
                continue
            with self.subTest(code=code):
                done = subprocess.run([*run, code.replace(":8080", f":{self.server.port}")], capture_output=True, timeout=60,
                                      check=False)
                self.assertEqual(done.returncode, 0, done.stderr.decode())
                said = done.stdout.decode()
                self.assertNotIn('"error"', said)
                self.assertIn("Paris", said)
                self.assertIn("hesitat", said)


class Starting(unittest.TestCase):
    def run_server(self, *flags):
        done = subprocess.run([SERVER, *flags], env=environment(), capture_output=True, timeout=60, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def test_help(self):
        code, out, _ = self.run_server("--help")
        self.assertEqual(code, 0)
        self.assertIn("--harp-beta", out)

    def test_faults(self):
        for flags, names in {
            ("-m", "no.gguf", "--harp-beta", "9"): ["beta", "9", "0..8"],
            ("-m", "no.gguf", "--port"): ["--port"],
            ("-m", "no.gguf", "--magic"): ["--magic"],
            ("-m", "no.gguf", "--port", "99999"): ["'--port': 99999", "0..65535"],
            ("-m", "no.gguf", "--port", "-1"): ["'--port': -1", "0..65535"],
            ("-m", "no.gguf", "--timeout", "0"): ["'--timeout': 0", "1.."],
            ("-m", "no.gguf", "--api-prefix", "llm"): ["'--api-prefix': 'llm'", "/PATH"],
            ("-m", "no.gguf", "--api-prefix", "/llm/"): ["'--api-prefix': '/llm/'", "/PATH"],
            ("-m", "no.gguf", "-np", "-3"): ["'-np': -3", "1..256"],
            ("-m", "no.gguf", "--parallel", "257"): ["'-np': 257", "1..256"],
            ("-m", "no.gguf", "-c", "-5"): ["'-c': -5", "0.."],
            ("-m", "no.gguf", "-b", "0"): ["'-b': 0", "1.."],
            ("-m", "no.gguf", "--api-key-file", str(ROOT)): ["--api-key-file", str(ROOT), "directory"],
            ("-m", "no.gguf", "--harp-preset", str(ROOT)): [str(ROOT), "Is a directory"],
        }.items():
            with self.subTest(flags=flags):
                code, _, err = self.run_server(*flags)
                self.assertEqual(code, 2, err)
                for name in names:
                    self.assertIn(name, err)

    @needs_tiny
    def test_preset_that_switches_off(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"harp": {"enabled": False}}, file)
            file.flush()
            server = Server("-c", "256", "--harp-preset", file.name)
        self.assertEqual(server.get("/props")["harp"], {"enabled": False})
        self.assertIn("harp: off", server.stop()[1])

    @unittest.skipUnless(shutil.which("nm"), "nm is not installed")
    def test_no_call_goes_past_harp(self):
        """No part of the program, images included, uses a function of libllama that harp/drop_in.h renames."""
        renamed = set(re.findall(r"#define (llama_\w+) harp_", (ROOT / "include/harp/drop_in.h").read_text()))
        self.assertIn("llama_process", renamed)
        done = subprocess.run(["nm", "-D", "--undefined-only", SERVER], capture_output=True, text=True, check=True)
        taken = {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}
        self.assertIn("harp_process", taken)
        self.assertEqual(taken & renamed - {"llama_init_from_model"}, set())  # which creates contexts of draft models

    @unittest.skipUnless(T5.is_file(), f"no {T5}")
    def test_model_that_cannot_hesitate_is_refused_by_name(self):
        code, _, err = self.run_server("-m", str(T5), "--port", "0")
        self.assertEqual(code, 1)
        self.assertIn("encoder", err)

    def test_embeddings(self):
        """A server for embeddings has HARP off, even with a model that could hesitate."""
        for model in filter(Path.is_file, (BERT, TINY)):
            with self.subTest(model=model.name):
                server = Server("-c", "256", "--embedding", "--pooling", "mean", "--harp-beta", "0.5", model=model)
                try:
                    said = server.post("/v1/embeddings", {"input": "Once upon a time"})["data"]
                finally:
                    code, output = server.stop()
                self.assertEqual(code, 0, output)
                self.assertAlmostEqual(sum(x * x for x in said[0]["embedding"]), 1, places=3)
                self.assertIn("harp: off", output)

    @unittest.skipUnless(BERT.is_file(), f"no {BERT}")
    def test_faults_of_embeddings(self):
        """None is a 500, which clients would send again."""
        asks = {"--embedding": [("/v1/embeddings", "prompt", {"input": value}) for value in (5, {"a": 1}, [1.5])] +
                               [("/v1/embeddings", "too large", {"input": "a " * 600}), ("/v1/embeddings", "dimensions: 8", {"input": "a", "dimensions": 8}),
                                ("/v1/chat/completions", "logits", {"messages": [{"role": "user", "content": "x"}]})],
                "--reranking": [("/v1/rerank", "top_n: -1", {"query": "a", "documents": ["b"], "top_n": -1})]}
        for kind, requests in asks.items():
            server = Server("-c", "1024", kind, model=BERT)
            self.addCleanup(server.stop)
            for path, message, body in requests:
                with self.subTest(body=str(body)[:60]), self.assertRaises(urllib.error.HTTPError) as caught:
                    server.post(path, body)
                self.assertEqual(caught.exception.code, 501 if message == "logits" else 400)
                self.assertIn(message, json.load(caught.exception)["error"]["message"])

    @needs_tiny
    def test_command_starts_it(self):
        done = subprocess.run([HARP, "serve", "--help"], env=environment(), capture_output=True, timeout=60, check=True)
        self.assertIn(b"harp serve", done.stdout)

    @needs_tiny
    def test_terminated(self):
        code, output = Server("-c", "256").stop(signal.SIGTERM)
        self.assertEqual(code, 0, output)
        self.assertIn("harp: gate=entropy threshold=1", output)
        self.assertIn("listening on http://127.0.0.1:", output)

    @needs_tiny
    def test_terminated_while_it_loads_the_model(self):
        process = subprocess.Popen([SERVER, "-m", str(TINY), "-c", "256", "--port", "0"], env=environment(), stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.assertIn(b"harp: gate=entropy", process.stderr.readline())  # said before the model is read
        process.terminate()
        self.assertEqual(process.wait(timeout=30), 0)

    @needs_tiny
    def test_unix_socket(self):
        """It is free again behind a server that ended or was killed, and not while one listens."""
        def start():
            process = subprocess.Popen([SERVER, "-m", str(TINY), "-c", "256", "--host", path], env=environment(), stderr=subprocess.PIPE)
            self.addCleanup(process.stderr.close)
            return process

        def answers():
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(path)
                    client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                    return b'"ok"' in b"".join(iter(lambda: client.recv(4096), b""))
                except OSError:
                    return False

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/harp.sock"
            for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
                server = start()
                while not answers():
                    self.assertIsNone(server.poll())
                    time.sleep(0.05)
                self.assertEqual(start().wait(timeout=30), 1)  # taken
                self.assertTrue(answers())
                server.send_signal(how)
                server.wait(timeout=30)
                self.assertEqual(Path(path).exists(), how == signal.SIGKILL)
            Path(path).write_text("not a socket")
            self.assertEqual(start().wait(timeout=30), 1)
            self.assertEqual(Path(path).read_text(), "not a socket")


if __name__ == "__main__":
    unittest.main(verbosity=2)
