#!/usr/bin/env python3
"""Answers of the Python package: what the command answers, alone and many at once; interrupted, and with options of a call.

Needs the package (`pip install .`, or ./test); finds command and models like the other tests.
"""

import gc
import re
import signal
import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

import harp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import ROOT, TINY, environment, needs_tiny
from python_engine import FLAGS, OPTIONS, tiny
from tiny_command import PROMPTS, generated


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
class Documentation(unittest.TestCase):
    def test_example(self):
        text = (ROOT / "docs/PYTHON.md").read_text()
        [example] = re.findall(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
        done = subprocess.run([sys.executable, "-c", example.replace("model.gguf", str(TINY))], env=environment(),
                              capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("(4, 512)", done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
