#!/usr/bin/env python3
"""Tests of the Python package's engine: it gives what the command gives, alone and many at once; views, errors, threads.

Needs the package (`pip install .`, or ./test); finds command and models like the other tests.
"""

import dataclasses
import gc
import json
import math
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

import gguf
import numpy as np

import harp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import HARP, MODELS, ROOT, SMOL, TINY, environment, needs_smol, needs_tiny
from running_server import EXACT

PROMPTS = ["Once upon a time", "The little dog", "Lily and Tom went", "One day a bird", "There was a big tree",
           "Mom said to", "In the garden", "The sun was"]
OPTIONS = harp.HarpOptions(threshold=0.5, seed=3)
FLAGS = ["--harp-threshold", "0.5", "--harp-seed", "3"]


def command(*arguments):
    done = subprocess.run([HARP, *arguments], env=environment(), capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)


def generated(prompt, *flags, n=32):
    return command("generate", "-m", str(TINY), "-p", prompt, "-n", str(n), "--temp", "0", "--format", "raw", "--json", *EXACT,
                   *flags)


def tiny(*flags):
    return harp.Model(TINY, n_threads=1, llama_args=[*EXACT, *flags])


class Options(unittest.TestCase):
    def test_are_those_of_the_engine(self):
        table = {name: default for name, default, *_ in harp._engine.option_table()}
        ours = {name: str(value) for name, value in dataclasses.asdict(harp.HarpOptions()).items()}
        self.assertEqual(list(ours), list(table))
        for name, value in ours.items():
            self.assertEqual(float(value) if value[0].isdigit() else value,
                             float(table[name]) if table[name][0].isdigit() else table[name])

    def test_bad_values_name_field_value_and_range(self):
        for change, words in [({"beta": 9}, ["beta", "9", "0..8"]), ({"perturbation": "noise"}, ["perturbation", "noise"]),
                              ({"threshold": -1}, ["threshold", "-1"]), ({"seed": 1.5}, ["seed", "1.5"])]:
            with self.subTest(**change), self.assertRaises(harp.HarpError) as caught:
                harp.HarpOptions(**change)
            self.assertEqual(caught.exception.code, "invalid_option")
            for word in words:
                self.assertIn(word, str(caught.exception))

    def test_numbers_as_text_are_numbers(self):
        options = harp.HarpOptions(threshold="2", beta="0.25", reframings="2", seed="7")
        self.assertEqual(options, harp.HarpOptions(threshold=2, beta=0.25, reframings=2, seed=7))
        self.assertEqual(harp.HarpOptions(threshold="inf").threshold, math.inf)

    def test_never(self):
        self.assertEqual(harp.HarpOptions(threshold=math.inf).threshold, math.inf)


@needs_tiny
class Generation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tiny()

    def test_says_what_the_command_says(self):
        expected = generated(PROMPTS[0], *FLAGS)
        session = harp.Session(self.model, OPTIONS, n_ctx=256)
        stream = session.generate(PROMPTS[0], max_tokens=32)
        tokens = list(stream)
        self.assertEqual(stream.answer.text, expected["text"])
        self.assertEqual([token.hesitated for token in tokens], [token["hesitated"] for token in expected["tokens"]])
        np.testing.assert_allclose([token.entropy for token in tokens], [token["entropy"] for token in expected["tokens"]],
                                   atol=1e-3)
        self.assertEqual("".join(token.text for token in tokens), stream.answer.text)
        self.assertEqual(stream.answer.stop_reason, "length")
        self.assertEqual(stream.answer.hesitations, sum(token.hesitated for token in tokens))
        self.assertGreater(stream.answer.hesitations, 0)

    def test_off_is_vanilla(self):
        session = harp.Session(self.model, None, n_ctx=256)
        [(_, answer)] = session.generate_many([PROMPTS[1]], max_tokens=32)
        self.assertEqual(answer.text, generated(PROMPTS[1], "--harp-off")["text"])
        self.assertEqual(answer.hesitations, 0)

    def test_many_at_once_are_as_alone(self):
        alone = [generated(prompt, *FLAGS)["text"] for prompt in PROMPTS]
        for n_sequences in (1, 3, 8):
            session = harp.Session(self.model, OPTIONS, n_ctx=256, n_sequences=n_sequences)
            answers = dict(session.generate_many(PROMPTS, max_tokens=32))
            self.assertEqual([answers[i].text for i in range(len(PROMPTS))], alone, f"{n_sequences} sequences")

    def test_two_streams_of_one_session(self):
        session = harp.Session(self.model, OPTIONS, n_ctx=256, n_sequences=2)
        first, second = (session.generate(prompt, max_tokens=16) for prompt in PROMPTS[:2])
        for _ in zip(first, second, strict=True):
            pass
        self.assertEqual([first.answer.text, second.answer.text],
                         [generated(prompt, *FLAGS, n=16)["text"] for prompt in PROMPTS[:2]])

    def test_dropped_stream_frees_its_sequence(self):
        session = harp.Session(self.model, OPTIONS, n_ctx=256)
        next(session.generate(PROMPTS[0], max_tokens=200))
        gc.collect()
        self.assertEqual(len(list(session.generate(PROMPTS[1], max_tokens=4))), 4)
        for _ in session.generate_many(PROMPTS, max_tokens=8):
            break
        gc.collect()
        self.assertEqual(session.score([([1], [403, 407])])[0].harp.shape, (2,))

    def test_stop_strings(self):
        session = harp.Session(self.model, None, n_ctx=256)
        whole = dict(session.generate_many(PROMPTS[:1], max_tokens=40))[0].text
        stop = whole[20:23]  # may begin inside one token and end inside another
        answer = dict(session.generate_many(PROMPTS[:1], max_tokens=40, stop=["@@", stop]))[0]
        self.assertEqual((answer.stop_reason, answer.text), ("stop_string", whole[:whole.index(stop)]))

    def test_sampling_is_seeded(self):
        session = harp.Session(self.model, None, n_ctx=256)
        texts = [dict(session.generate_many(PROMPTS[:1], max_tokens=24, sampling=harp.Sampling(temperature=1, seed=seed)))[0].text
                 for seed in (1, 1, 2)]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])

    def test_a_sampling_for_each_prompt(self):
        session = harp.Session(self.model, None, n_ctx=64, n_sequences=2)
        samplings = [harp.Sampling(temperature=2, seed=seed) for seed in (1, 2, 1)]
        texts = {index: answer.text for index, answer in session.generate_many(["Once"] * 3, max_tokens=8, sampling=samplings)}
        self.assertEqual(texts[0], texts[2])
        self.assertNotEqual(texts[0], texts[1])
        with self.assertRaisesRegex(harp.HarpError, "sampling: 3 for 2 prompts; allowed: one, or one for each"):
            next(session.generate_many(["Once"] * 2, sampling=samplings))
        for wrong in ("greedy", 1, None, [None]):
            with self.assertRaisesRegex(TypeError, r"sampling: .*allowed: Sampling\(\.\.\.\)"):
                next(session.generate_many(["Once"], sampling=wrong))

    def test_mask_families(self):
        session = harp.Session(self.model, OPTIONS.replace(threshold=0, strength=0.4), n_ctx=256, n_sequences=3)
        answers = dict(session.generate_many(PROMPTS[:1] * 3, max_tokens=32, mask_families=[0, 7, 7]))
        self.assertEqual(answers[1].text, answers[2].text)
        self.assertNotEqual(answers[0].text, answers[1].text)

    def test_conversation_is_decoded_once(self):
        session = harp.Session(self.model, OPTIONS, n_ctx=256, n_sequences=2)
        prompt = self.model.tokenize(PROMPTS[0])
        said = [token.id for token in session.generate(prompt, max_tokens=24)]
        longer = [*prompt, *said, *self.model.tokenize(" And then", add_special=False)]
        rows = session.statistics["clean_rows"]
        again = [token.id for token in session.generate(longer, max_tokens=8)]
        self.assertLess(session.statistics["clean_rows"] - rows, 8 + 8)
        fresh = harp.Session(self.model, OPTIONS, n_ctx=256)
        self.assertEqual(again, [token.id for token in fresh.generate(longer, max_tokens=8)])
        dict(session.generate_many([PROMPTS[1]] * 2, max_tokens=4))
        self.assertEqual([token.id for token in session.generate(longer, max_tokens=8)], again)

    def test_speculation_gives_the_same_tokens(self):
        plain = harp.Session(self.model, OPTIONS, n_ctx=256, n_sequences=3)
        expected = dict(plain.generate_many(PROMPTS[:4], max_tokens=48))
        for flags in (["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2"], ["-md", str(TINY)]):
            with self.subTest(flags=flags):
                session = harp.Session(tiny(*flags), OPTIONS, n_ctx=256, n_sequences=3)
                answers = dict(session.generate_many(PROMPTS[:4], max_tokens=48))
                self.assertEqual([answers[i].text for i in range(4)], [expected[i].text for i in range(4)])
                stream = session.generate(PROMPTS[0], max_tokens=48)
                self.assertEqual("".join(token.text for token in stream), expected[0].text)
                self.assertGreater(session.statistics["accepted"], 0)
                self.assertGreaterEqual(session.statistics["drafted"], session.statistics["accepted"])

    def test_prompts_that_fit_a_pool_one_by_one(self):
        prompts = [[1, *range(300 + i, 480 + i)] for i in range(3)]
        alone = harp.Session(self.model, None, n_ctx=256)
        expected = [dict(alone.generate_many([prompt], max_tokens=8))[0].text for prompt in prompts]
        session = harp.Session(self.model, None, n_ctx=128, n_sequences=2, unified=True)
        answers = dict(session.generate_many(prompts, max_tokens=8))
        self.assertEqual([answers[i].text for i in range(3)], expected)

    def test_little_room_for_the_second_pass(self):
        last = harp.HarpOptions(view="last", view_tokens=6, threshold=0.2, beta=2, schedule="lazy")
        whole = harp.Session(self.model, last, n_ctx=256, n_sequences=3, unified=True)
        small = harp.Session(self.model, last, n_ctx=256, n_sequences=3, unified=True, n_ctx_twin=24)
        guided = last.replace(view="guidance")
        for options in (last, guided):
            with self.subTest(view=options.view):
                answers = [dict(session.generate_many(PROMPTS[:3], max_tokens=16, options=options)) for session in (whole, small)]
                self.assertEqual(*([answer[i].text for i in range(3)] for answer in answers))
                scores = [session.score([(PROMPTS[0], " a little"), (PROMPTS[1], " day")], options=options) for session in (whole, small)]
                for a, b in zip(*scores):
                    self.assertAlmostEqual(a.log_likelihood, b.log_likelihood, places=4)
        self.assertEqual(dict(small.generate_many(PROMPTS[:1], max_tokens=80, options=guided))[0].stop_reason, "context_full")
        with self.assertRaises(harp.HarpError) as caught:
            small.generate(PROMPTS[0], options=last.replace(view="perturbed"))
        self.assertIn("n_ctx_twin", str(caught.exception))

    def test_an_answer_ends_where_its_own_second_pass_is_full(self):
        def ended(stream):
            list(stream)
            return stream.answer.text, stream.answer.stop_reason

        guided = harp.HarpOptions(view="guidance", threshold=0.2, beta=1.5, schedule="lazy")
        alone = harp.Session(self.model, guided, n_ctx=256, n_ctx_twin=24)
        whole = [ended(alone.generate(prompt, max_tokens=80)) for prompt in PROMPTS[:3]]
        self.assertEqual({reason for _, reason in whole}, {"context_full"})
        both = harp.Session(self.model, guided, n_ctx=256, n_sequences=2, unified=True, n_ctx_twin=24)
        first = both.generate(PROMPTS[0], max_tokens=80)
        for _ in range(8):
            next(first)
        second = both.generate(PROMPTS[1], max_tokens=80)  # begun later, with room left when the first is full
        self.assertEqual([ended(first), ended(second)], whole[:2])

    def test_stream_dropped_while_another_thread_decodes(self):
        session = harp.Session(tiny(), OPTIONS, n_ctx=4096, n_sequences=2)
        endless = harp.Sampling(grammar="root ::= [a-z ] root")
        dropped = session.generate(PROMPTS[0], sampling=endless)
        next(dropped)
        thread = threading.Thread(target=lambda: dict(session.generate_many(PROMPTS * 4, max_tokens=40)))
        thread.start()
        time.sleep(0.05)
        del dropped
        gc.collect()
        thread.join()
        self.assertEqual(session.forward([1, 2]).logits.shape[0], 1)  # no answer is in progress

    def test_context_full(self):
        session = harp.Session(self.model, None, n_ctx=64)
        answer = dict(session.generate_many(PROMPTS[:1], max_tokens=100000))[0]
        self.assertIn(answer.stop_reason, ("context_full", "end_of_text"))

    def test_beams(self):
        flags = ["--harp-off", "--beams", "3"]
        expected = generated(PROMPTS[0], *flags, n=16)
        session = harp.Session(self.model, None, n_ctx=256, n_sequences=3, unified=True)
        best = session.beam_search(PROMPTS[0], beams=3, max_tokens=16)[0]
        self.assertEqual(best.text, expected["hypotheses"][0]["text"])
        longest = session.beam_search(PROMPTS[0], beams=3, max_tokens=-1)[0]
        self.assertGreater(len(longest.tokens), 16)

    def test_no_tokens_are_an_empty_answer(self):
        session = harp.Session(self.model, OPTIONS, n_ctx=256, n_sequences=3, unified=True)
        stream = session.generate(PROMPTS[0], max_tokens=0)
        self.assertEqual((list(stream), stream.answer.text, stream.answer.stop_reason), ([], "", "length"))
        [none] = session.beam_search(PROMPTS[0], beams=3, max_tokens=0)
        self.assertEqual((none.tokens, none.text, none.log_probability, none.is_finished), ([], "", 0.0, False))

    def test_a_character_that_is_not_completed_is_in_no_text(self):
        session = harp.Session(self.model, None, n_ctx=256)
        grammar = harp.Sampling(grammar='root ::= "é漢🎉"')  # one token, then tokens of one byte each
        for n, text in enumerate(["é", "é", "é", "é漢", "é漢", "é漢", "é漢", "é漢🎉"], start=1):
            with self.subTest(tokens=n):
                stream = session.generate(PROMPTS[0], max_tokens=n, sampling=grammar)
                tokens = list(stream)
                self.assertEqual(("".join(token.text for token in tokens), stream.answer.text), (text, text))
                self.assertEqual(b"".join(token.piece for token in tokens), "é漢🎉".encode()[:n + 1])


@needs_tiny
class Interrupted(unittest.TestCase):
    """By Ctrl-C, or another signal whose handler raises."""

    def setUp(self):
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)

    def interrupt(self, seconds, call):
        """Whether the call was interrupted after so long."""
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            return True
        return False

    def test_a_stream_goes_on_where_it_was(self):
        session = harp.Session(tiny(), harp.HarpOptions(), n_ctx=256)
        right = [token.id for token in session.generate(PROMPTS[0], max_tokens=40)]
        stream = session.generate(PROMPTS[0], max_tokens=40)
        n_interrupted = sum(self.interrupt(1e-4, lambda: next(stream, None)) for _ in range(60))
        self.assertGreater(n_interrupted, 5)
        for _ in stream:  # ends
            pass
        self.assertEqual([token.id for token in stream.answer.tokens], right)
        self.assertEqual(stream.answer.text, "".join(token.text for token in stream.answer.tokens))

    def test_what_an_interrupted_stream_left_is_not_another_ones(self):
        session = harp.Session(tiny(), harp.HarpOptions(), n_ctx=256)
        right = [token.id for token in session.generate(PROMPTS[0], max_tokens=4)]
        for _ in range(20):
            left = session.generate(PROMPTS[1], max_tokens=1)
            self.interrupt(1e-4, lambda: next(left))
            left.close()
            session.score([([1], [2])])  # a later answer's number is the same as that one's
            self.assertEqual([token.id for token in session.generate(PROMPTS[0], max_tokens=4)], right)

    def test_long_calls_end_after_a_batch(self):
        session = harp.Session(tiny("-b", "16"), harp.HarpOptions(), n_ctx=1024, n_sequences=4, unified=True)
        for name, call in {"forward": lambda: session.forward([3] * 2000),
                           "beams": lambda: session.beam_search(PROMPTS[0], beams=4, max_tokens=400)}.items():
            with self.subTest(name):
                rows = [session.statistics["clean_rows"]]
                for seconds in (0.02, 100):
                    session.truncate(0)
                    self.assertEqual(self.interrupt(seconds, call), seconds < 1)
                    rows.append(session.statistics["clean_rows"])
                self.assertLess(rows[1] - rows[0], rows[2] - rows[1])
        session.forward([1, 2])
        self.assertTrue(self.interrupt(0.02, lambda: session.forward([3] * 2000)))
        self.assertEqual(session.n_past, 2)


@needs_tiny
class OptionsOfOneCall(unittest.TestCase):
    """What a call is given holds for that call alone."""

    @classmethod
    def setUpClass(cls):
        cls.model = tiny()
        cls.tokens = cls.model.tokenize("Once upon a time there was a little")

    own = harp.HarpOptions(threshold=0)
    other = harp.HarpOptions(threshold=0, beta=3, view="last", view_tokens=2)
    calls = {
        "generate, options": lambda s, x: list(s.generate("Once", max_tokens=2, options=x)),
        "generate, mask family": lambda s, x: list(s.generate("Once", max_tokens=2, mask_family=5)),
        "generate, closed": lambda s, x: s.generate("Once", max_tokens=2, options=x, mask_family=5).close(),
        "generate_many, options": lambda s, x: list(s.generate_many(["Once"], max_tokens=2, options=x)),
        "generate_many, mask family": lambda s, x: list(s.generate_many(["Once"], max_tokens=2, mask_families=[5])),
        "score, options": lambda s, x: s.score([("Once", " upon")], options=x),
        "score, mask family": lambda s, x: s.score([("Once", " upon")], mask_families=[5]),
        "score_each": lambda s, x: s.score_each([("Once", " upon")], [x, None]),
        "score_each, vanilla": lambda s, x: s.score_each([("Once", " upon")], [None]),
        "beam_search, options": lambda s, x: s.beam_search("Once", beams=2, max_tokens=2, options=x),
        "beam_search, mask family": lambda s, x: s.beam_search("Once", beams=2, max_tokens=2, mask_family=5),
    }

    def session(self, options=own):
        return harp.Session(self.model, options, n_ctx=128, n_sequences=2, unified=True)

    def beams_of(self, session, **more):
        return [(one.text, one.log_probability) for one in session.beam_search("Once upon a time", beams=2, max_tokens=8, **more)]

    def test_forward_has_the_sessions_own(self):
        right = self.session().forward(self.tokens).logits
        self.assertGreater(np.abs(self.session(self.other).forward(self.tokens).logits - right).max(), 1)
        for name, call in self.calls.items():
            with self.subTest(name):
                session = self.session()
                call(session, self.other)
                np.testing.assert_array_equal(session.forward(self.tokens).logits, right)

    def test_beam_search_has_the_sessions_own(self):
        right = self.beams_of(self.session())
        self.assertNotEqual(self.beams_of(self.session(self.other)), right)
        for name, call in self.calls.items():
            with self.subTest(name):
                session = self.session()
                call(session, self.other)
                self.assertEqual(self.beams_of(session), right)

    def test_a_negative_prompt(self):
        def in_two_parts(session):
            session.forward(self.tokens[:5])
            return session.forward(self.tokens[5:]).logits

        guidance = harp.HarpOptions(threshold=0, view="guidance")
        right, beams = in_two_parts(self.session(guidance)), self.beams_of(self.session(guidance))
        negative = {"negative_prompt": "Hello you"}
        for name, call in {"generate": lambda s: list(s.generate("Once", max_tokens=2, **negative)),
                           "generate_many": lambda s: list(s.generate_many(["Once"], max_tokens=2, **negative)),
                           "score": lambda s: s.score([("Once", " upon")], **negative),
                           "beam_search": lambda s: s.beam_search("Once", beams=2, max_tokens=2, **negative)}.items():
            with self.subTest(name):
                session = self.session(guidance)
                call(session)
                np.testing.assert_array_equal(in_two_parts(session), right)
                call(session)
                self.assertEqual(self.beams_of(session), beams)
        self.assertNotEqual(self.beams_of(self.session(guidance), **negative), beams)

    def test_beam_search_has_those_it_is_given(self):
        self.assertEqual(self.beams_of(self.session(), options=self.other), self.beams_of(self.session(self.other)))
        self.assertNotEqual(self.beams_of(self.session(), mask_family=5), self.beams_of(self.session()))

    def test_the_end_of_another_prompt(self):
        def in_two_parts(session):
            session.forward(self.tokens[:3])
            return session.forward(self.tokens[3:]).logits

        generated = harp.HarpOptions(threshold=0, scope="generated")
        right = in_two_parts(self.session(generated))
        long = self.tokens[:6]
        for name, call in {"generate": lambda s: list(s.generate(long, max_tokens=1)), "score": lambda s: s.score([(long, [5])]),
                           "beam_search": lambda s: s.beam_search(long, beams=2, max_tokens=1)}.items():
            with self.subTest(name):
                session = self.session(generated)
                call(session)
                np.testing.assert_array_equal(in_two_parts(session), right)

    def test_forward_begins_a_new_sequence(self):
        def interrupted(session):  # by Ctrl-C after the first batch of several
            real = session._pass

            def one_batch():
                real.score_batch()
                raise KeyboardInterrupt

            session._pass = mock.Mock(wraps=real, score_batch=one_batch)
            with self.assertRaises(KeyboardInterrupt):
                session.score([([1], list(range(3, 90)))])
            session._pass = real

        narrow = tiny("-b", "16")
        right = harp.Session(narrow, self.own, n_ctx=128, n_sequences=2).forward(self.tokens).logits
        for name, call in {"score, interrupted": interrupted, "score": lambda s: s.score([("Once", " upon")]),
                           "generate": lambda s: list(s.generate(self.tokens, max_tokens=2))}.items():
            with self.subTest(name):
                session = harp.Session(narrow, self.own, n_ctx=128, n_sequences=2)
                session.forward([1, 2, 3])
                self.assertEqual(session.n_past, 3)
                call(session)
                self.assertEqual(session.n_past, 0)
                np.testing.assert_array_equal(session.forward(self.tokens).logits, right)


@needs_tiny
class Scores(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tiny()

    def score_of(self, text, *flags):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(text)
            file.flush()
            return command("score", "-m", str(TINY), "-f", file.name, "-c", "256", "--json", *EXACT, *flags)

    def test_are_those_of_the_command(self):
        texts = ["Once upon a time there was a dog.", "Lily went to the park and saw a big tree."]
        pairs = [(tokens[:1], tokens[1:]) for tokens in map(self.model.tokenize, texts)]
        for options, flags in ((OPTIONS, FLAGS), (None, ["--harp-off"])):
            session = harp.Session(self.model, options, n_ctx=256, n_sequences=2)
            for text, score in zip(texts, session.score(pairs), strict=True):
                said = self.score_of(text, *flags)
                n = said["tokens"]
                self.assertAlmostEqual(-score.vanilla.sum() / n, said["vanilla"]["mean"], places=5)
                self.assertAlmostEqual(-score.log_likelihood / n, said.get("harp", said["vanilla"])["mean"], places=5)
                self.assertEqual(score.hesitated.sum(), said.get("hesitations", 0))

    def test_a_continuation_has_no_added_space(self):
        model, session = self.model, harp.Session(self.model, None, n_ctx=256)
        self.assertTrue(model.detokenize(model.tokenize("a", add_special=False)).startswith(" "))  # a vocabulary of SentencePiece's
        for context, continuation, n in (("Once upon a", " time", 1), ("Once upon a time", ", there was", None), ("The dog.", "\nIt", None),
                                         ("Once upon a", " ", 1), ("", "Once upon", None)):
            with self.subTest(continuation):
                [score] = session.score([(context, continuation)])
                head, whole = model.tokenize(context), model.tokenize(context + continuation)
                self.assertEqual(whole[:len(head)], head)
                [right] = session.score([(head, whole[len(head):])])
                np.testing.assert_array_equal(score.vanilla, right.vanilla)
                self.assertEqual(len(score.vanilla), n or len(score.vanilla))

    def test_same_context_is_read_once(self):
        session = harp.Session(self.model, OPTIONS, n_ctx=256, n_sequences=4)
        tokens = self.model.tokenize("Once upon a time there was a")
        choices = self.model.tokenize(" dog cat bird", add_special=False)
        together = session.score([(tokens, [choice]) for choice in choices])
        rows = session.statistics["clean_rows"]
        self.assertLess(rows, 2 * len(tokens))
        for choice, score in zip(choices, together, strict=True):
            [alone] = session.score([(tokens, [choice])])
            self.assertAlmostEqual(alone.log_likelihood, score.log_likelihood, places=5)
        best = int(np.argmax(harp.Session(self.model, OPTIONS, n_ctx=256).forward(tokens).logits[0]))
        self.assertEqual([score.is_greedy for score in together], [choice == best for choice in choices])

    def test_several_options_share_a_reading(self):
        text = self.model.tokenize("Once upon a time there was a dog. Lily went to the park and saw a big")
        choices = self.model.tokenize(" tree dog", add_special=False)
        pairs = [([*text[:-1]], [text[-1], choice]) for choice in choices]
        sets = [OPTIONS, None, OPTIONS.replace(threshold=3.0, beta=0.25), OPTIONS.replace(threshold=0.5, beta=0.75),
                OPTIONS.replace(beta=1.0), OPTIONS.replace(beta=2.0, plausibility=0.1), OPTIONS.replace(gate="ratio", threshold=0.3)]
        session = harp.Session(self.model, OPTIONS, n_ctx=256, n_sequences=2)
        shared = session.score_each(pairs, sets, mask_families=[3] * len(pairs))
        self.assertEqual(session.statistics["clean_rows"], len(text))
        for number, options in enumerate(sets):
            apart = harp.Session(self.model, options, n_ctx=256, n_sequences=2).score(pairs, mask_families=[3] * len(pairs))
            for ours, alone in zip([scores[number] for scores in shared], apart, strict=True):
                np.testing.assert_allclose(ours.harp, alone.harp, atol=1e-4)
                np.testing.assert_allclose(ours.vanilla, alone.vanilla, atol=1e-4)
                self.assertEqual((ours.is_greedy, ours.is_vanilla_greedy), (alone.is_greedy, alone.is_vanilla_greedy))
                if options:
                    self.assertEqual(ours.hesitated.tolist(), alone.hesitated.tolist())
        self.assertNotEqual(shared[0][0].log_likelihood, shared[0][2].log_likelihood)
        self.assertLess(shared[0][1].seconds, shared[0][0].seconds)

    def test_a_callback_cannot_score_in_the_same_session(self):
        session = harp.Session(self.model, OPTIONS, n_ctx=256)
        refused = []

        def on_scores(*_):
            with self.assertRaises(harp.HarpError) as caught:
                session.score([("Once upon a", " time")])
            refused.append(caught.exception.code)

        pairs = [("Once upon a", " time there"), ("Lily went", " to the park")]
        self.assertEqual(len(session.score_each(pairs, [OPTIONS], on_scores=on_scores)), 2)
        self.assertEqual(refused, ["unsupported_call"] * 2)
        self.assertEqual(len(session.score(pairs)), 2)

    def test_no_options_are_vanilla(self):
        pairs = [("Once upon a", " time there"), ("Lily went", " to the park")]
        session = harp.Session(self.model, OPTIONS.replace(threshold=0, beta=0), n_ctx=256)
        session.score(pairs, options=OPTIONS)
        for options in ([None], [None, None]):
            for score in sum(session.score_each(pairs, options, mask_families=[1, 2]), []):
                np.testing.assert_array_equal(score.harp, score.vanilla)
                self.assertFalse(score.hesitated.any())
        self.assertTrue((session.score(pairs)[-1].harp != score.vanilla).all())
        for one in (session, harp.Session(self.model, None, n_ctx=256)):
            self.assertEqual([len(scores) for scores in one.score_each(pairs, [None])], [1, 1])
            with self.assertRaises(harp.HarpError) as caught:
                one.score_each(pairs, [])
            self.assertEqual(caught.exception.code, "invalid_option")
            self.assertIn("at least one", str(caught.exception))

    def test_views(self):
        text = self.model.tokenize("Once upon a time there was a dog. Lily went to the park and saw a big")
        for options in [harp.HarpOptions(threshold=0, view="last", view_tokens=4, beta=2), harp.HarpOptions(threshold=0, view="masked"),
                        harp.HarpOptions(threshold=0, view="guidance", beta=1.5)]:
            with self.subTest(view=options.view):
                session = harp.Session(self.model, options, n_ctx=256, n_sequences=3)
                pairs = [(text[:n], text[n:]) for n in (5, 9, 12)]  # the context is the prompt
                together = session.score(pairs)
                for pair, score in zip(pairs, together, strict=True):
                    [alone] = harp.Session(self.model, options, n_ctx=256).score([pair])
                    np.testing.assert_allclose(score.harp, alone.harp, atol=1e-3)
                    self.assertGreater(np.abs(score.harp - score.vanilla).max(), 0.01)
                    self.assertTrue(np.isfinite(score.harp).all())

    def test_a_negative_prompt(self):
        options = harp.HarpOptions(threshold=0, view="guidance", beta=2)
        session = harp.Session(self.model, options, n_ctx=256)
        texts = [[token.id for token in session.generate("Once upon a time", max_tokens=12, negative_prompt=negative)]
                 for negative in ("", "The dog was sad.", self.model.tokenize("The dog was sad."))]
        self.assertEqual(texts[1], texts[2])
        tokens = len(self.model.tokenize("The dog was sad."))
        self.assertEqual(session.statistics["second_pass_rows"], 3 * 12 + 2 * (tokens - 1))  # each row once, and the prompt never
        [own], [other] = (session.score([("Once upon a", " time")], negative_prompt=negative) for negative in ("", "The dog"))
        self.assertNotEqual(own.log_likelihood, other.log_likelihood)
        with self.assertRaises(harp.HarpError) as caught:
            session.generate("Once", options=OPTIONS, negative_prompt="x")
        self.assertEqual(caught.exception.code, "invalid_option")
        self.assertIn("guidance", str(caught.exception))

    def test_presets(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "preset.json"
            path.write_text(json.dumps({"harp": {"view": "last", "view_tokens": 5, "beta": 2, "threshold": "inf"}, "found_by": 1}))
            self.assertEqual(harp.HarpOptions.from_preset(path, beta=3.0),
                             harp.HarpOptions(view="last", view_tokens=5, beta=3.0, threshold=math.inf))
            for text in ["", "[]", '{"harp": 1}', '{"harp": {"bta": 1}}', '{"harp": {"beta": 9}}']:
                path.write_text(text)
                with self.subTest(text=text), self.assertRaises(harp.HarpError):
                    harp.HarpOptions.from_preset(path)
            with self.assertRaises(harp.HarpError) as caught:
                harp.HarpOptions.from_preset("nowhere.json")
            self.assertIn("nowhere.json", str(caught.exception))

            path.write_text(json.dumps({"harp": {"view": "guidance", "beta": 2, "negative_prompt": "A cat"}}))
            self.assertEqual(harp.read_preset(path, beta=3.0), (harp.HarpOptions(view="guidance", beta=3.0), "A cat"))
            self.assertEqual(harp.read_preset(path, view="last"), (harp.HarpOptions(view="last", beta=2.0), ""))
            with self.assertRaises(harp.HarpError) as caught:  # options alone would mean another second pass
                harp.HarpOptions.from_preset(path)
            self.assertIn("read_preset", str(caught.exception))
            path.write_text('{"harp": {"enabled": true, "beta": 2}}')
            self.assertEqual(harp.HarpOptions.from_preset(path), harp.HarpOptions(beta=2.0))
            for text, names in [('{"harp": {"enabled": false}}', ["switches HARP off", "options=None"]),
                                ('{"harp": {"enabled": "no"}}', ["harp.enabled: 'no'", "true, false"])]:
                path.write_text(text)
                with self.assertRaises(harp.HarpError) as caught:
                    harp.read_preset(path)
                for name in [str(path), *names]:
                    self.assertIn(name, str(caught.exception))

            path.write_text('{"harp": {"negative_prompt": 5}}')
            with self.assertRaises(harp.HarpError) as caught:
                harp.read_preset(path)
            self.assertIn("negative_prompt: 5", str(caught.exception))

    def test_options_that_cannot_share_a_reading(self):
        session = harp.Session(self.model, OPTIONS, n_ctx=64)
        uniform = OPTIONS.replace(perturbation="uniform", strength=5)
        with self.assertRaises(harp.HarpError) as caught:
            session.score_each([([1], [2])], [uniform, None, uniform.replace(threshold=4.0)])
        self.assertEqual(caught.exception.code, "invalid_option")
        self.assertIn("uniform", str(caught.exception))
        for other in (OPTIONS.replace(strength=0.1), OPTIONS.replace(seed=9), OPTIONS.replace(redraw=1)):
            with self.subTest(other=other), self.assertRaises(harp.HarpError) as caught:
                session.score_each([([1], [2])], [OPTIONS, None, other])
            self.assertEqual(caught.exception.code, "invalid_option")
        with self.assertRaises(harp.HarpError):
            session.score_each([([1], [2])], [OPTIONS.replace(redraw=1), OPTIONS.replace(redraw=1, threshold=3.0)])

    def test_greedy_continuation_is_greedy(self):
        session = harp.Session(self.model, OPTIONS, n_ctx=256)
        prompt = self.model.tokenize(PROMPTS[0])
        tokens = [token.id for token in session.generate(prompt, max_tokens=12)]
        [score, other] = session.score([(prompt, tokens), (prompt, [*tokens[:-1], tokens[-1] - 1])])
        self.assertTrue(score.is_greedy)
        self.assertFalse(other.is_greedy)

    def test_errors(self):
        session = harp.Session(self.model, None, n_ctx=64)
        for pair in [([], "a"), ([1], []), ([1] * 300, [2])]:
            with self.subTest(pair=pair[0][:3]), self.assertRaises(harp.HarpError) as caught:
                session.score([([1], [2]), pair])
            self.assertEqual(caught.exception.code, "invalid_input")
        self.assertEqual(len(session.score([([1], [2])])), 1)  # the session can still be used


@needs_tiny
class Logits(unittest.TestCase):
    def test_rows_and_records(self):
        model = tiny()
        session = harp.Session(model, OPTIONS, n_ctx=256)
        tokens = model.tokenize("Once upon a time there was")
        every = session.forward(tokens, all=True)
        self.assertEqual(every.logits.shape, (len(tokens), model.n_vocab))
        self.assertFalse(every.logits.flags.writeable)
        [score] = session.score([(tokens[:1], tokens[1:])])
        kept = every_log_probabilities(session, tokens)
        np.testing.assert_allclose(kept, score.harp, atol=1e-4)

    def test_cut_and_continued_is_the_same(self):
        model = tiny()
        session = harp.Session(model, None, n_ctx=256)
        tokens = model.tokenize("Once upon a time there was")
        whole = session.forward(tokens).logits.copy()
        session.truncate(3)
        self.assertEqual(session.n_past, 3)
        np.testing.assert_allclose(session.forward(tokens[3:]).logits, whole, atol=1e-3)

    def test_full_context_leaves_the_sequence_as_it_was(self):
        session = harp.Session(tiny("-b", "16"), None, n_ctx=256)
        session.forward([1, 2, 3])
        with self.assertRaises(harp.HarpError) as caught:
            session.forward([4] * 300)
        self.assertEqual(caught.exception.code, "context_full")
        self.assertEqual(session.n_past, 3)
        session.forward([4] * 40)
        self.assertEqual(session.n_past, 43)

    def test_a_refused_call_leaves_the_sequence(self):
        session = harp.Session(tiny(), harp.HarpOptions(), n_ctx=256, n_sequences=2, unified=True)
        session.forward([1, 2, 3])
        guided = harp.HarpOptions(view="guidance")
        refused = {
            "empty prompt": lambda: session.generate([]),
            "long prompt": lambda: session.generate([1] * session.n_ctx),
            "negative prompt": lambda: session.generate("Once", negative_prompt="Twice"),
            "reframings": lambda: session.generate("Once", options=harp.HarpOptions(reframings=2)),
            "grammar": lambda: session.generate("Once", sampling=harp.Sampling(grammar="root ::= (")),
            "empty continuation": lambda: session.score([([1], [])]),
            "long continuation": lambda: session.score([([1], [2] * (session.n_ctx + 1))]),
            "options": lambda: session.score_each([([1], [2])], [harp.HarpOptions(), guided]),
            "beams": lambda: session.beam_search("Once", beams=3, max_tokens=4),
            "room of beams": lambda: session.beam_search("Once", beams=2, max_tokens=600),
        }
        for name, call in refused.items():
            with self.subTest(name):
                with self.assertRaises(harp.HarpError):
                    call()
                self.assertEqual(session.n_past, 3)

    def test_logits_outlive_the_next_call_and_the_session(self):
        session = harp.Session(tiny(), None, n_ctx=256)
        kept = session.forward([1, 2, 3], all=True).logits
        then = kept.copy()
        for _ in range(3):
            session.forward(list(range(3, 63)), all=True)
        np.testing.assert_array_equal(kept, then)
        del session
        gc.collect()
        np.testing.assert_array_equal(kept, then)

    def test_truncate_is_within_the_sequence(self):
        session = harp.Session(tiny(), None, n_ctx=64)
        session.forward([1, 2, 3])
        for n in (-1, 4, 2**40):
            with self.subTest(n=n), self.assertRaises(harp.HarpError) as caught:
                session.truncate(n)
            self.assertEqual(caught.exception.code, "invalid_input")
            self.assertIn("n: ", str(caught.exception))
            self.assertIn("0..3", str(caught.exception))
            self.assertEqual(session.n_past, 3)
        session.truncate(3)
        session.truncate(0)
        self.assertEqual(session.n_past, 0)

    @unittest.skipUnless((MODELS / "random-mamba.gguf").is_file(), "no random-mamba.gguf")
    def test_recurrent_state_cannot_go_back(self):
        model = harp.Model(MODELS / "random-mamba.gguf", n_threads=1, llama_args=["-b", "16"])
        session = harp.Session(model, None, n_ctx=256)
        session.forward([1, 2, 3])
        with self.assertRaises(harp.HarpError) as caught:
            session.truncate(2)
        self.assertEqual((caught.exception.code, session.n_past), ("unsupported_call", 3))
        with self.assertRaises(harp.HarpError) as caught:  # its first batch is decoded before the error
            session.forward([4] * 20 + [model.n_vocab])
        self.assertEqual((caught.exception.code, session.n_past), ("invalid_batch", 0))
        session.forward([1, 2])
        self.assertEqual(session.n_past, 2)

    @unittest.skipUnless((MODELS / "gemma-3-270m-Q4_K_M.gguf").is_file(), "no Gemma")
    def test_a_sliding_window_cannot_go_back(self):
        model = harp.Model(MODELS / "gemma-3-270m-Q4_K_M.gguf", n_threads=1, llama_args=["-ub", "64"])
        session = harp.Session(model, None, n_ctx=2048)
        session.forward(list(range(2000, 2900)))
        with self.assertRaises(harp.HarpError) as caught:
            session.truncate(100)
        self.assertEqual((caught.exception.code, session.n_past), ("unsupported_call", 900))
        session.truncate(890)
        session.truncate(0)


def every_log_probabilities(session, tokens):
    session.truncate(0)
    logits = session.forward(tokens, all=True).logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)
    return log_p[np.arange(len(tokens) - 1), tokens[1:]]


class Errors(unittest.TestCase):
    def check(self, code, words, call):
        with self.assertRaises(harp.HarpError) as caught:
            call()
        self.assertEqual(caught.exception.code, code, caught.exception)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_models(self):
        self.check("invalid_input", ["nowhere.gguf"], lambda: harp.Model("nowhere.gguf"))
        self.check("invalid_input", ["GGUF"], lambda: harp.Model(__file__))

    @needs_tiny
    def test_flags_and_sizes(self):
        self.check("invalid_option", ["--magic"], lambda: harp.Model(TINY, llama_args=["--magic"]))
        self.check("invalid_option", ["n_ctx", "0"], lambda: harp.Session(tiny(), None, n_ctx=0))
        for n_ctx in (2**31, 2**32 + 64, 2**40):
            words = ["n_ctx", str(n_ctx), "2..1073741823"]
            self.check("invalid_option", words, lambda: harp.Session(tiny(), None, n_ctx=n_ctx, n_sequences=2))
        self.check("invalid_option", ["n_ctx", "2..536870911"],
                   lambda: harp.Session(tiny(), OPTIONS, n_ctx=2**30, n_sequences=2))
        self.check("invalid_option", ["n_sequences: 200", "1..128"], lambda: harp.Session(tiny(), OPTIONS, n_ctx=64, n_sequences=200))
        self.check("invalid_option", ["n_sequences", "257"], lambda: harp.Session(tiny(), None, n_ctx=64, n_sequences=257))
        self.check("invalid_input", ["prompt", "empty"], lambda: harp.Session(tiny(), None, n_ctx=64).generate([]))
        self.check("invalid_input", ["512"], lambda: tiny().detokenize([512]))

    @needs_tiny
    def test_what_a_session_was_not_created_for_is_refused_at_once(self):
        """Not by the first batch, which would lose the request, and whoever waits for its answer would wait forever."""
        off, on = (harp.Session(tiny(), options, n_ctx=256, n_sequences=2, unified=True) for options in (None, OPTIONS))
        more, long = OPTIONS.replace(reframings=2), [5] * off.n_ctx
        guidance = OPTIONS.replace(view="guidance")
        for call in (lambda s, **more: s.generate("Once", **more), lambda s, **more: list(s.generate_many(["Once"], **more)),
                     lambda s, **more: s.score([("Once", " upon")], **more), lambda s, **more: s.beam_search("Once", beams=2, **more)):
            self.check("invalid_option", ["options", "without HARP"], lambda: call(off, options=OPTIONS))
            self.check("invalid_option", ["'reframings': 2", "1..1"], lambda: call(on, options=more))
            self.check("invalid_input", ["negative prompt", "512 tokens"], lambda: call(on, options=guidance, negative_prompt=long))

    @unittest.skipUnless(all((MODELS / f"random-{name}.gguf").is_file() for name in ("bert", "t5")), "no random models")
    def test_models_that_do_not_generate_are_refused_by_name(self):
        for name, why in (("t5", "it has an encoder"), ("bert", "its attention is not causal")):
            model = harp.Model(MODELS / f"random-{name}.gguf")
            for options in (None, harp.HarpOptions()):
                self.check("unsupported_model", [name, why], lambda: harp.Session(model, options))

    @needs_tiny
    def test_one_thread_at_a_time(self):
        session = harp.Session(tiny(), None, n_ctx=4096, n_sequences=4)
        text = list(range(3, 503)) * 6
        thread = threading.Thread(target=lambda: session.score([(text[:1], text[1:])] * 4))
        thread.start()
        for call in (lambda: session.forward([1]), lambda: session.n_past):
            with self.assertRaises(harp.HarpError) as caught:  # this thread can run while the other one decodes
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline:
                    call()
                    self.assertLess(session.statistics["clean_rows"], 10 * len(text))
            self.assertEqual(caught.exception.code, "unsupported_call")
        thread.join()
        self.assertGreaterEqual(session.statistics["clean_rows"], len(text) - 1)

    @needs_smol
    def test_other_threads_run_while_a_model_is_loaded(self):
        def load(make):
            times.append(time.monotonic())
            make()
            times.append(time.monotonic())

        model = harp.Model(SMOL)
        for make in (lambda: harp.Model(SMOL), lambda: harp.Session(model, OPTIONS, n_ctx=4096)):
            times, seen = [], []
            thread = threading.Thread(target=load, args=[make])
            thread.start()
            while thread.is_alive():
                seen.append(time.monotonic())
            begin, end = times
            self.assertTrue(any(begin + 0.2 * (end - begin) < at < begin + 0.8 * (end - begin) for at in seen))

    def test_errors_cross_processes(self):
        error = pickle.loads(pickle.dumps(harp.HarpError("words", "io")))
        self.assertEqual((str(error), error.code), ("words", "io"))


@needs_tiny
class Documentation(unittest.TestCase):
    def test_example(self):
        text = (ROOT / "docs/PYTHON.md").read_text()
        [example] = re.findall(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
        done = subprocess.run([sys.executable, "-c", example.replace("model.gguf", str(TINY))], env=environment(),
                              capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("(4, 512)", done.stdout)


@needs_smol
class Chat(unittest.TestCase):
    def test_template_and_answer(self):
        model = harp.Model(SMOL, n_threads=1)
        self.assertTrue(model.has_chat_template)
        prompt = model.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
        self.assertIn("<|im_start|>user\nWhat is the capital", prompt)
        session = harp.Session(model, n_ctx=256)
        [(_, answer)] = session.generate_many([prompt], max_tokens=32)
        self.assertIn("Paris", answer.text)

    def test_kernels_are_on_unless_switched_off(self):
        def logits(**settings):
            model = harp.Model(SMOL, n_threads=1, **settings)
            session = harp.Session(model, None, n_ctx=128)
            return np.array(session.forward(model.tokenize("The capital of France is")).logits[-1])

        default, on, off = logits(), logits(kernels=True), logits(kernels=False)
        np.testing.assert_array_equal(default, on)
        self.assertEqual(on.argmax(), off.argmax())
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            self.assertEqual((on != off).any(), " avx2 " in file.read())

        np.testing.assert_array_equal(logits(kernels="off"), off)
        with self.assertRaisesRegex(harp.HarpError, "kernels"):
            logits(kernels="fast")

    def test_texts_come_back_from_their_tokens(self):
        for model in (tiny(), harp.Model(SMOL, n_threads=1)):
            for text in ("Once upon a time", " two  spaces", "\nline", "é 🦙", "", " "):
                with self.subTest(model, text=text):
                    self.assertEqual(model.detokenize(model.tokenize(text)), text)
        model = tiny()
        self.assertEqual(model.detokenize(model.tokenize("Once</s>upon"), special=True), "<s>Once</s>upon")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "added.gguf"
            shutil.copy(TINY, path)
            file = gguf.GGUFReader(path, "r+")
            types = file.fields["tokenizer.ggml.token_type"]
            [ing] = [id for id in range(model.n_vocab) if model.detokenize([id]) == "ing"]
            types.parts[types.data[ing]][0] = gguf.TokenType.USER_DEFINED  # what is behind such a token is tokenized separately
            file.data.flush()
            added = harp.Model(path, n_threads=1)
            self.assertIn(ing, added.tokenize("a ing b"))
            for text in ("a ing b", "ing", "singing b"):
                self.assertEqual(added.detokenize(added.tokenize(text)), text)
        stream = harp.Session(model, None, n_ctx=64).generate("Once upon", max_tokens=6)
        ids = [token.id for token in stream]
        self.assertEqual(model.detokenize(ids), stream.answer.text)
        self.assertTrue(stream.answer.text.startswith(" "))

    def test_a_prompt_with_the_first_token_by_name_has_it_once(self):
        session = harp.Session(tiny(), None, n_ctx=64)
        texts = []
        for prompt in ("Once upon", "<s>Once upon"):
            stream = session.generate(prompt, max_tokens=4)
            first = next(stream).position
            texts.append((first, [token.text for token in stream]))
        self.assertEqual(texts[0], texts[1])

    def test_characters_of_several_tokens(self):
        model = harp.Model(SMOL, n_threads=1)
        grammar = 'root ::= "é🎉\\n漢"'
        stream = harp.Session(model, None, n_ctx=128).generate("x", max_tokens=20, sampling=harp.Sampling(grammar=grammar))
        self.assertEqual("".join(token.text for token in stream), "é🎉\n漢")
        self.assertEqual(stream.answer.text, "é🎉\n漢")


if __name__ == "__main__":
    unittest.main(verbosity=2)
