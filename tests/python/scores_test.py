#!/usr/bin/env python3
"""Scores and logits of the Python package: those of the command, with several options in one reading; sequences that are cut.

Needs the package (`pip install .`, or ./test); finds command and models like the other tests.
"""

import gc
import json
import math
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

import harp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import MODELS, needs_tiny
from python_engine import FLAGS, OPTIONS, tiny
from tiny_command import PROMPTS, scored


@needs_tiny
class Scores(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tiny()

    def test_are_those_of_the_command(self):
        texts = ["Once upon a time there was a dog.", "Lily went to the park and saw a big tree."]
        pairs = [(tokens[:1], tokens[1:]) for tokens in map(self.model.tokenize, texts)]
        for options, flags in ((OPTIONS, FLAGS), (None, ["--harp-off"])):
            session = harp.Session(self.model, options, n_ctx=256, n_sequences=2)
            for text, score in zip(texts, session.score(pairs), strict=True):
                said = scored(text, "-c", "256", *flags)
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
            for text, reason in [("", "not JSON"), ('{"harp": {"beta": 2', "not JSON"), ("[]", 'an object "harp"'), ('{"harp": 1}', 'an object "harp"'),
                                 ('{"harp": {"bta": 1}}', "unknown option 'bta'; known: enabled, negative_prompt, gate, "),
                                 ('{"harp": {"beta": 9}}', "option 'beta': 9 is out of range; allowed: 0..8")]:
                path.write_text(text)
                with self.subTest(text=text), self.assertRaises(harp.HarpError) as caught:
                    harp.HarpOptions.from_preset(path)
                self.assertIn(f"preset '{path}': {reason}" if "object" not in reason else reason, str(caught.exception))
            path.write_text('{"harp": {"beta": 2}}')
            with self.assertRaises(harp.HarpError) as caught:  # not the file's fault
                harp.HarpOptions.from_preset(path, threshold=-1)
            self.assertTrue(str(caught.exception).startswith("option 'threshold': -1"), caught.exception)
            with self.assertRaises(harp.HarpError) as caught:
                harp.HarpOptions.from_preset("nowhere.json")
            self.assertIn("nowhere.json", str(caught.exception))

            path.write_text(json.dumps({"harp": {"view": "guidance", "beta": 2, "negative_prompt": "A cat"}}))
            self.assertEqual(harp.read_preset(path, beta=3.0), (harp.HarpOptions(view="guidance", beta=3.0), "A cat"))
            self.assertEqual(harp.read_preset(path, view="last"), (harp.HarpOptions(view="last", beta=2.0), ""))
            with self.assertRaises(harp.HarpError) as caught:  # options alone would mean another second pass
                harp.HarpOptions.from_preset(path)
            self.assertIn("read_preset", str(caught.exception))
            path.write_text('{"harp": {"view": "last", "view_tokens": 3.0, "seed": 7.0}}')  # integers, in JSON
            self.assertEqual(harp.HarpOptions.from_preset(path), harp.HarpOptions(view="last", view_tokens=3, seed=7))
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


if __name__ == "__main__":
    unittest.main(verbosity=2)
