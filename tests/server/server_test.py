#!/usr/bin/env python3
"""Answers of harp-server: those of `harp generate`, alone and together with others, with options of a request; counts, drafts.

Finds the programs through HARP_SERVER_BINARY and HARP_BINARY, the tiny model through HARP_SHARED_DATA and SmolLM2 through
HARP_TEST_MODELS; tests whose model is missing are skipped.
"""

import concurrent.futures
import json
import socket
import sys
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import needs_tiny
from running_server import EXACT, OneServer, Server
from server_answers import counters, generate, metrics
from tiny_command import PROMPTS


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
                if path == "/v1/responses":
                    del body["prompt"]  # there it is OpenAI's stored prompt, which is refused
                with self.subTest(harp=harp_object, path=path), self.assertRaises(urllib.error.HTTPError) as caught:
                    self.server.post(path, body)
                self.assertEqual(caught.exception.code, 400)
                message = json.load(caught.exception)["error"]["message"]
                for name in names:
                    self.assertIn(name, message)
                if "known" in message:
                    self.assertNotIn("schedule", message)

    def test_options_that_a_request_ended_up_with(self):
        defaults = self.server.get("/props")["harp"]
        for asked, changed in (({}, {}), ({"beta": 0.25, "view": "last"}, {"beta": 0.25, "view": "last"}), ({"enabled": False}, None)):
            answer = self.server.post("/completion", {"prompt": "Once", "n_predict": 1, "id_slot": 0, "harp": asked})
            expected = {"enabled": False} if changed is None else {**defaults, **changed}
            self.assertEqual(answer["generation_settings"]["harp"], expected)
            self.assertEqual(self.server.get("/slots")[0]["params"]["harp"], expected)

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


@needs_tiny
class Drafts(OneServer, unittest.TestCase):
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


@needs_tiny
class BackEndSampling(OneServer, unittest.TestCase):
    flags = ["--backend-sampling"]

    def test_sees_the_mixed_logits(self):
        body = {"prompt": PROMPTS[0], "n_predict": 32, "temperature": 0, "backend_sampling": True}
        self.assertEqual(self.server.post("/completion", body)["content"], generate(PROMPTS[0], n=32))


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


if __name__ == "__main__":
    unittest.main(verbosity=2)
