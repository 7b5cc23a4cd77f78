#!/usr/bin/env python3
"""Log-probabilities and usage in the server's answers: an entry for each token of the text, in each endpoint, streamed or not.

Finds the program and the models like server_test.py.
"""

import itertools
import re
import sys
import unittest
from pathlib import Path

try:
    import openai
    from openai.types import Completion
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
except ImportError:
    openai = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import SMOL, needs_smol, needs_tiny
from running_server import EXACT, OneServer, Server

COMPLETION, COMPLETIONS, CHAT = "/completion", "/v1/completions", "/v1/chat/completions"
WORDS = 'root ::= "🦙 b🦙🦙 END of it" [a-z ]*'  # in both vocabularies the llama is several tokens


def token_bytes(text):
    """The bytes of a token in the older format."""
    if text.startswith("bytes:"):
        return bytes(int(code, 16) for code in re.findall(r"\\x(..)", text))
    return text.encode()


def entries_of(logprobs):
    """[(bytes of a token, log-probability)] of an answer's or a chunk's log-probabilities."""
    if not logprobs:
        return []
    if isinstance(logprobs, dict) and "tokens" in logprobs:
        return list(zip(map(token_bytes, logprobs["tokens"]), logprobs["token_logprobs"], strict=True))
    entries = logprobs["content"] if isinstance(logprobs, dict) else logprobs
    return [(bytes(entry["bytes"]), entry["logprob"]) for entry in entries]


def candidates_of(answer):
    """How many candidates an answer's tokens have, except tokens that cannot have any."""
    choice = answer.get("choices", [answer])[0]
    logprobs = choice.get("completion_probabilities") or choice["logprobs"]
    if isinstance(logprobs, dict) and "tokens" in logprobs:
        return {len(top) for top in logprobs["top_logprobs"] if top is not None}
    return {len(token["top_logprobs"]) for token in (logprobs["content"] if isinstance(logprobs, dict) else logprobs)}


class Choice:
    """A choice of an answer; for a stream, the sum of its chunks."""

    def __init__(self):
        self.text, self.entries = "", []

    def add(self, choice):
        message = choice.get("message") or choice.get("delta") or choice
        self.text += message.get("content") or choice.get("text") or ""
        self.entries += entries_of(choice.get("completion_probabilities") or choice.get("logprobs"))

    @property
    def bytes(self):
        return b"".join(token for token, _ in self.entries)


def choices_of(parts):
    choices = {}
    for choice in itertools.chain.from_iterable(part.get("choices", [part]) for part in parts):
        choices.setdefault(choice["index"], Choice()).add(choice)
    return [choices[index] for index in sorted(choices)]


def whole_characters(data):
    return data.decode("utf-8", "ignore")


class Characters(OneServer):
    """Tests that depend on how a vocabulary splits characters; run below with SentencePiece and with byte-level BPE."""

    rounding = 1e-4
    lengths = range(1, 9)  # lengths of answers that end inside a character or after it
    stops = ["END", "ND o", " of it", "🦙 END", "🦙", "b"]

    def body(self, path, **more):
        prompt = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Once upon a time"}
        wanted = {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
        return {**prompt, "temperature": 0, "ignore_eos": True, "max_tokens": 8, "cache_prompt": False, **wanted, **more}

    def ask(self, path, **more):
        return self.server.post(path, self.body(path, **more))

    def assert_same_entries(self, some, others):
        """Expects the same tokens. HARP chooses batches by their cost, so log-probabilities are rounded differently."""
        self.assertEqual([token for token, _ in some], [token for token, _ in others])
        for (_, one), (_, other) in zip(some, others, strict=True):
            self.assertAlmostEqual(one or 0, other or 0, delta=self.rounding)

    def both(self, path, **more):
        """The only choice of an answer, which must be the same streamed; and the whole answer."""
        answer = self.ask(path, **more)
        [choice] = choices_of([answer])
        [streamed] = choices_of(self.server.stream(path, self.body(path, **more)))
        self.assertEqual(streamed.text.rstrip("\ufffd"), choice.text.rstrip("\ufffd"))  # without a character that was cut off
        self.assert_same_entries(streamed.entries, choice.entries)
        return choice, answer

    def test_parts_of_characters_have_entries(self):
        for path in [COMPLETION, COMPLETIONS, CHAT]:
            for n in self.lengths:
                with self.subTest(path=path, n=n):
                    choice, answer = self.both(path, grammar=WORDS, max_tokens=n)
                    self.assertEqual(len(choice.entries), n)
                    self.assertEqual(whole_characters(choice.bytes), choice.text.rstrip("\ufffd"))
                    counts = answer["timings"].get("harp")
                    self.assertTrue(counts is None or counts["steps"] == n, counts)

    def test_a_stop_string_leaves_the_entries_of_the_text(self):
        for stop in self.stops:
            for path in [COMPLETION, COMPLETIONS, CHAT]:
                with self.subTest(path=path, stop=stop):
                    choice, _ = self.both(path, grammar=WORDS, max_tokens=32, stop=["never said", stop])
                    self.assertEqual(choice.text, "🦙 b🦙🦙 END of it".partition(stop)[0])
                    self.assertTrue(choice.bytes.startswith(choice.text.encode()))
                    without_last = b"".join(token for token, _ in choice.entries[:-1])
                    self.assertLessEqual(len(without_last), max(0, len(choice.text.encode()) - 1))

    def test_echo_is_the_prompt(self):
        for prompt in ["Tom has a dog.", " Tom  has", "\n\nTom", "🦙 naïve 中文", "x🦙", " ", "a<unk>b"]:
            for n in [0, 1, 3]:
                with self.subTest(prompt=prompt, n=n):
                    answer = self.ask(COMPLETIONS, prompt=prompt, echo=True, max_tokens=n)
                    text, logprobs = answer["choices"][0]["text"], answer["choices"][0]["logprobs"]
                    self.assertEqual(text[:len(prompt)], prompt)
                    self.assertEqual(len(text) > len(prompt), n > 0)
                    self.assertEqual(len(logprobs["tokens"]), answer["usage"]["prompt_tokens"] + n)
                    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
                        data = token_bytes(token)
                        self.assertTrue(data in text[offset:offset + len(data)].encode() or token == "<s>", (token, offset))


class Answers(Characters):
    """The other tests; run below with HARP on and off."""

    def test_a_first_token_without_text_begins_the_message(self):
        first = self.server.stream(CHAT, self.body(CHAT, grammar=WORDS))[0]
        self.assertEqual(first["choices"][0]["delta"]["role"], "assistant")

    def test_entries_of_held_back_tokens_are_their_own(self):
        free, _ = self.both(COMPLETION, max_tokens=16)
        third = free.entries[3][0].decode()
        for stop in [third + "\a", third + free.entries[4][0].decode() + "\a"]:
            for n in range(4, 8):  # it also ends while something is held back
                with self.subTest(stop=stop, n=n):
                    held, _ = self.both(COMPLETION, max_tokens=n, stop=[stop])
                    self.assert_same_entries(held.entries, free.entries[:n])
                    self.assertEqual(held.text, whole_characters(held.bytes))

    def test_no_candidates(self):
        for path, none, some in [(COMPLETION, {"logprobs": 0}, {"n_probs": 2}), (COMPLETION, {"logprobs": True}, {"n_probs": 2}),
                                 (COMPLETIONS, {"logprobs": 0}, {}), (COMPLETIONS, {"logprobs": True}, {}),
                                 (COMPLETIONS, {"logprobs": 0, "echo": True}, {"echo": True}),
                                 (CHAT, {"top_logprobs": 0}, {}), (CHAT, {"top_logprobs": None}, {})]:
            with self.subTest(path=path, none=none):
                answers = [self.ask(path, **none), self.ask(path, **some)]
                [without], [with_candidates] = (choices_of([answer]) for answer in answers)
                self.assert_same_entries(without.entries, with_candidates.entries)
                self.assertGreaterEqual(len(without.entries), 8)
                self.assertEqual([candidates_of(answer) for answer in answers], [{0}, {2}])

    def test_none_where_none_are_asked_for(self):
        for path in [COMPLETION, COMPLETIONS, CHAT]:
            for wanted in [None, False]:
                with self.subTest(path=path, wanted=wanted):
                    choice, answer = self.both(path, logprobs=wanted, top_logprobs=None)
                    self.assertEqual(choice.entries, [])
                    self.assertNotIn("completion_probabilities", answer)

    def test_the_older_shape(self):
        plain, echoed = self.ask(COMPLETIONS)["choices"][0], self.ask(COMPLETIONS, echo=True)["choices"][0]
        chunks = self.server.stream(COMPLETIONS, self.body(COMPLETIONS))
        columns = ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
        streamed = {name: [value for chunk in chunks for choice in chunk["choices"]
                           for value in (choice["logprobs"] or {name: []})[name]] for name in columns}
        logprobs = plain["logprobs"]
        self.assertEqual(streamed["tokens"], logprobs["tokens"])
        self.assertEqual(streamed["text_offset"], logprobs["text_offset"])
        self.assertEqual(echoed["text"], "Once upon a time" + plain["text"])
        self.assertEqual(echoed["logprobs"]["tokens"][-8:], logprobs["tokens"])
        for a, b in zip(echoed["logprobs"]["token_logprobs"][-8:], logprobs["token_logprobs"], strict=True):
            self.assertAlmostEqual(a, b, delta=self.rounding)
        self.assertEqual([offset - len("Once upon a time") for offset in echoed["logprobs"]["text_offset"][-8:]],
                         logprobs["text_offset"])
        self.assertEqual({len(column) for column in logprobs.values()}, {8})
        for token, logprob, top, offset in zip(*(logprobs[name] for name in columns), strict=True):
            self.assertEqual(plain["text"][offset:offset + len(token)], token)
            self.assertEqual(top[token], logprob)

    def test_an_unlikely_token_is_among_its_candidates(self):
        logprobs = self.ask(COMPLETIONS, logit_bias=[["q", 100]], logprobs=1)["choices"][0]["logprobs"]
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
            self.assertEqual((len(top), top[token]), (2, logprob))

    def test_the_continuation_is_found_by_characters(self):
        """Found in the same way as by lm-evaluation-harness's model gguf."""
        for context, continuation in [("Tom has a dog.", " It is big"), ("A 🦙", " is"), ("A ", "🦙🦙"), ("中", "文"), ("x", "y")]:
            with self.subTest(context=context, continuation=continuation):
                logprobs = self.ask(COMPLETIONS, prompt=context + continuation, echo=True, max_tokens=1)["choices"][0]["logprobs"]
                begins = next(i for i, offset in enumerate(logprobs["text_offset"]) if offset >= len(context))
                tokens = [token_bytes(token) for token in logprobs["tokens"]]
                scored = b"".join(tokens[begins:-1])
                self.assertTrue(continuation.encode().endswith(scored), scored)  # it contains nothing of the context
                self.assertGreaterEqual(len(scored) + len(tokens[begins - 1]), len(continuation.encode()))

    def test_echo_has_an_entry_for_each_token(self):
        """Scorers cut off the generated token, so it must be there, whatever it is."""
        prompt = "The capital of France is Paris"
        plain, part, stopped = (self.ask(COMPLETIONS, prompt=prompt, echo=True, max_tokens=1, **more)
                                for more in [{}, {"grammar": WORDS}, {"stop": [" ", ".", ",", "a", "e"]}])
        n = plain["usage"]["prompt_tokens"] + 1
        for answer in [plain, part, stopped]:
            logprobs = answer["choices"][0]["logprobs"]
            self.assertEqual(len(logprobs["tokens"]), n)
            for a, b in zip(logprobs["token_logprobs"][1:-1], plain["choices"][0]["logprobs"]["token_logprobs"][1:-1], strict=True):
                self.assertAlmostEqual(a, b, delta=self.rounding)

    def test_usage_is_the_sum(self):
        prompts = ["Once upon", "The little dog ran", "Mom"]
        prompt_tokens = [self.ask(COMPLETIONS, prompt=prompt)["usage"]["prompt_tokens"] for prompt in prompts]
        for path, more, n_choices, n_prompt in [(COMPLETIONS, {"prompt": prompts[0]}, 1, prompt_tokens[0]),
                                                (COMPLETIONS, {"prompt": prompts[0], "n": 3}, 3, prompt_tokens[0]),
                                                (COMPLETIONS, {"prompt": prompts}, 3, sum(prompt_tokens)),
                                                (COMPLETIONS, {"prompt": prompts, "n": 2}, 6, sum(prompt_tokens)),
                                                (CHAT, {"n": 3}, 3, self.ask(CHAT)["usage"]["prompt_tokens"])]:
            with self.subTest(path=path, more=more):
                answer = self.ask(path, **more)
                usage = answer["usage"]
                self.assertEqual((len(answer["choices"]), usage["completion_tokens"]), (n_choices, 8 * n_choices))
                self.assertEqual((usage["prompt_tokens"], usage["total_tokens"]), (n_prompt, n_prompt + 8 * n_choices))
                self.assertEqual(usage["harp"]["steps"] if "harp" in usage else 8 * n_choices, 8 * n_choices)
                asked = self.server.stream(path, self.body(path, **more, stream_options={"include_usage": True}))
                self.assertEqual([chunk["choices"] for chunk in asked if "usage" in chunk], [[]])
                said = asked[-1]["usage"]
                for counts in [usage, said]:
                    counts.get("harp", {}).pop("second_pass_seconds", None)
                self.assertEqual(said, usage)
                unasked = self.server.stream(path, self.body(path, **more))
                self.assertEqual([chunk for chunk in unasked if "usage" in chunk or not chunk["choices"]], [])

    @unittest.skipIf(openai is None, "the package openai is not installed")
    def test_openai_types(self):
        """Each answer and chunk has what the client's types require; the client itself is lenient."""
        for path, n, stop in itertools.product([COMPLETIONS, CHAT], [1, 3], [None, ["END"]]):
            for wanted in [{}, {"logprobs": None, "top_logprobs": None}]:
                body = self.body(path, n=n, stop=stop, grammar=WORDS, max_tokens=24, **wanted)
                with self.subTest(path=path, n=n, stop=stop, wanted=wanted):
                    answer = (ChatCompletion if path == CHAT else Completion).model_validate(self.server.post(path, body))
                    self.assertEqual([choice.index for choice in answer.choices], list(range(n)))
                    self.assertEqual({choice.finish_reason for choice in answer.choices}, {"stop" if stop else "length"})
                    chunks = self.server.stream(path, {**body, "stream_options": {"include_usage": True}})
                    last = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
                    self.assertEqual(len(last), n)
                    for chunk in chunks:
                        for choice in chunk["choices"]:  # in completions null until the end, as OpenAI's, although the type does not allow it
                            if path == COMPLETIONS:
                                choice["finish_reason"] = choice["finish_reason"] or "length"
                        (ChatCompletionChunk if path == CHAT else Completion).model_validate(chunk)


@needs_tiny
class Hesitating(Answers, unittest.TestCase):
    def test_drafts_are_not_made_where_they_have_no_probabilities(self):
        drafting = Server("-np", "1", "-c", "512", *EXACT, "--spec-type", "ngram-simple", "--spec-draft-n-max", "4")
        self.addCleanup(drafting.stop)
        body = self.body(COMPLETION, max_tokens=96,
                         prompt="Lily saw a dog. The dog ran. Lily saw a cat. The cat ran. Lily saw a bird. The bird")
        drafted = drafting.post(COMPLETION, body)
        self.assertGreater(drafted["timings"]["draft_n_accepted"], 0)
        self.assertEqual([token["id"] for token in drafted["completion_probabilities"]],
                         [token["id"] for token in self.server.post(COMPLETION, body)["completion_probabilities"]])
        after = drafting.post(COMPLETION, {**body, "post_sampling_probs": True})
        self.assertEqual(len(after["completion_probabilities"]), 96)
        for token in after["completion_probabilities"]:
            self.assertEqual(token["prob"], token["top_probs"][0]["prob"])

    def test_an_echo_in_a_slot_that_was_used(self):
        """As in a fresh one. Where it does not matter what is prompt, the answer behind is that without the echo."""
        for harp in ({"view": "guidance", "beta": 1.5, "threshold": 0}, {"scope": "generated", "threshold": 0}, {"threshold": 0}):
            server = Server("-np", "1", "-c", "512", *EXACT)
            self.addCleanup(server.stop)
            ask = {"prompt": "Lily and Tom went to the park to play.", "echo": True, "logprobs": 0, "max_tokens": 4, "temperature": 0,
                   "harp": harp}
            fresh, used = (server.post(COMPLETIONS, ask)["choices"][0]["logprobs"]["token_logprobs"][1:] for _ in range(2))
            plain = server.post(COMPLETIONS, {**ask, "echo": False, "cache_prompt": False})["choices"][0]["logprobs"]["token_logprobs"]
            pairs = [(fresh, used)] if len(harp) > 1 else [(fresh, used), (used[-4:], plain)]
            with self.subTest(harp=harp):
                for one, other in pairs:
                    for a, b in zip(one, other, strict=True):
                        self.assertAlmostEqual(a, b, places=3)

    def test_vanilla_candidates_in_the_older_shape(self):
        logprobs = self.ask(COMPLETIONS, max_tokens=24)["choices"][0]["logprobs"]
        self.assertIn(True, logprobs["hesitated"])
        for hesitated, vanilla in zip(logprobs["hesitated"], logprobs["vanilla_top_logprobs"], strict=True):
            self.assertEqual(2 if hesitated else None, vanilla and len(vanilla))

    def test_very_unlikely_tokens(self):
        """Subtracted second passes make tokens less probable than a float can say. An echo of the answer has the same."""
        harp = {"threshold": 0, "beta": 8}
        unlikely = {"grammar": 'root ::= "zzzzQQQ"', "max_tokens": 12, "ignore_eos": False, "harp": harp}
        said = self.ask(COMPLETION, prompt="Once upon a time there was", **unlikely)
        logprobs = [entry["logprob"] for entry in said["completion_probabilities"]]
        self.assertLess(min(logprobs), -110)
        ids = self.server.post("/tokenize", {"content": "Once upon a time there was", "add_special": True})["tokens"]
        ids += [entry["id"] for entry in said["completion_probabilities"]]
        echo = self.ask(COMPLETIONS, prompt=ids, echo=True, max_tokens=0, harp=harp)["choices"][0]["logprobs"]["token_logprobs"]
        for logprob, echoed in zip(logprobs, echo[-len(logprobs):], strict=True):
            self.assertAlmostEqual(logprob, echoed, delta=0.02)
        for path in (COMPLETION, CHAT):  # also among the candidates
            said = self.ask(path, **unlikely, n_probs=512, logprobs=True, top_logprobs=512)
            entries = said["choices"][0]["logprobs"]["content"] if path == CHAT else said["completion_probabilities"]
            lists = [entry[name] for entry in entries for name in ("top_logprobs", "vanilla_top_logprobs")]
            self.assertGreater(min(candidate["logprob"] for candidates in lists for candidate in candidates), -1000)

    def test_lists_of_a_stream_can_be_joined(self):
        for more in ({}, {"logprobs": 0}, {"harp": {"threshold": 100}}):
            with self.subTest(more=more):
                body = self.body(COMPLETIONS, max_tokens=24, **more)
                plain = self.server.post(COMPLETIONS, body)["choices"][0]["logprobs"]
                chunks = [choice["logprobs"] for chunk in self.server.stream(COMPLETIONS, body) for choice in chunk["choices"]
                          if choice["logprobs"]]
                self.assertEqual({name for chunk in chunks for name in chunk}, set(plain))
                joined = {name: [value for chunk in chunks for value in chunk[name]] for name in plain}
                self.assertEqual({len(column) for column in joined.values()}, {24})
                for name in ("tokens", "text_offset", "hesitated"):
                    self.assertEqual(joined[name], plain[name])
                if "vanilla_top_logprobs" in plain:
                    self.assertEqual(*([value and list(value) for value in one["vanilla_top_logprobs"]] for one in (joined, plain)))


@needs_tiny
class Off(Answers, unittest.TestCase):
    flags = ["--harp-off"]


@needs_smol
class ByteLevel(Characters, unittest.TestCase):
    model = SMOL
    rounding = 0.5  # its activations are quantised
    lengths = [2, 6]
    stops = ["ND o", "🦙 END"]


if __name__ == "__main__":
    unittest.main(verbosity=2)
