#!/usr/bin/env python3
"""`--model harp` at the edges of a context reads the same as lm-eval's Hugging Face backend (tests/python/hf_equivalence.py compares both)."""

import importlib.util
import sys
import unittest
import zlib
from pathlib import Path
from unittest import mock

import numpy as np

import harp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import SMOL, TINY, needs_smol, needs_tiny

LM_EVAL = importlib.util.find_spec("lm_eval")
if LM_EVAL:
    from lm_eval.api.instance import Instance

    from harp.lm_eval_model import HarpLM

MAX_LENGTH = 16
TEXT = "Once upon a time there was a little dog who lived in a house with a big garden and many red flowers"


def requests(kind, *arguments):
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


class Edges(unittest.TestCase):
    model = TINY
    max_length = MAX_LENGTH

    @classmethod
    def setUpClass(cls):
        cls.lm = HarpLM(path=str(cls.model), enabled=False, max_length=cls.max_length, n_threads=1)
        cls.tokens = cls.lm.model.tokenize(TEXT, add_special=False)

    def read(self, call):
        """What the session is asked to score during `call`."""
        asked = []

        def score_each(pairs, options, *, on_scores, **_):
            asked.extend(pairs)
            for index, (_, continuation) in enumerate(pairs):
                on_scores(index, [harp.Score(*[np.zeros(len(continuation))] * 4, True, True, 0.0)])

        with mock.patch.object(self.lm.session, "score_each", score_each):
            call()
        return asked


@unittest.skipUnless(LM_EVAL, "no lm-eval")
@needs_tiny
class Lengths(Edges):
    def asked(self, context, continuation):
        [pair] = self.read(lambda: self.lm._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True))
        return pair

    def test_rows_are_those_of_the_hugging_face_backend(self):
        n = self.max_length
        for n_context in (1, 2, n - 2, n - 1, n, n + 1, n + 5):
            for n_continuation in (1, 2, 3, n - 1, n):
                context = self.tokens[:n_context]
                continuation = (self.tokens * 2)[n_context:n_context + n_continuation]
                with self.subTest(context=n_context, continuation=n_continuation):
                    theirs = (context + continuation)[-(n + 1):][:-1]  # their input, whose last rows predict the continuation
                    ours, scored = self.asked(context, continuation)
                    self.assertEqual((ours + scored)[:-1], theirs)
                    self.assertEqual(scored, continuation)
                    self.assertGreaterEqual(len(ours), 1)

    def test_a_full_context_is_scored_as_the_session_scores_it(self):
        session = harp.Session(self.lm.model, None, n_ctx=64)
        for n_context in (self.max_length - 1, self.max_length, self.max_length + 3):
            context, continuation = self.tokens[:n_context], self.tokens[n_context:n_context + 1]
            [(found, _)] = self.lm._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True)
            [right] = session.score([(context[-self.max_length:], continuation)])
            self.assertAlmostEqual(found, right.log_likelihood, places=4)

    def test_a_continuation_that_does_not_fit_is_an_error(self):
        for strings in (None, ("a", "b" * 60)):
            with self.assertRaises(ValueError) as caught:
                self.lm._loglikelihood_tokens([(strings, self.tokens[:2], (self.tokens * 2)[2:2 + self.max_length + 1])],
                                              disable_tqdm=True)
            self.assertIn(f"{self.max_length + 1} tokens; allowed: 1..{self.max_length} (max_length)", str(caught.exception))
        self.assertIn("'" + "b" * 40 + "...'", str(caught.exception))

    def test_a_continuation_without_tokens_is_an_error(self):
        with self.assertRaises(ValueError) as caught:
            self.lm._loglikelihood_tokens([(("a", ""), self.tokens[:2], [])], disable_tqdm=True)
        self.assertIn("'' has 0 tokens", str(caught.exception))

    def test_a_context_that_is_cut_is_said_once(self):
        self.lm._warned_of_length = False
        with self.assertLogs("harp.lm_eval_model", "WARNING") as logged:
            for _ in range(2):
                self.asked((self.tokens * 2)[:30], self.tokens[:3])
        self.assertEqual(len(logged.output), 1)
        self.assertIn("30 tokens", logged.output[0])

    def test_rolling_windows_are_those_of_the_hugging_face_backend(self):
        from lm_eval import utils
        for text in ("", "Once", TEXT, TEXT * 3):
            found = self.read(lambda text=text: self.lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)), True))
            windows = utils.get_rolling_token_windows(token_list=self.lm.tok_encode(text), prefix_token=self.lm.prefix_token_id,
                                                      max_seq_len=self.max_length, context_len=1)
            self.assertEqual(found, [utils.make_disjoint_window(window) for window in windows])

    def test_sizes(self):
        for value in (1, 0, -1, 2**31, 2**40):
            with self.subTest(value), self.assertRaises(harp.HarpError) as caught:
                HarpLM(model=self.lm.model, enabled=False, max_length=value)
            self.assertIn(f"max_length: {value}; allowed: 2..", str(caught.exception))

    def test_words_are_no_truth_values(self):
        for name in ("enabled", "shared_masks", "kernels", "add_bos_token"):
            for value in ("off", "False", 2, -1):
                with self.subTest(name, value=value), self.assertRaises(TypeError) as caught:
                    HarpLM(path=str(TINY), **{"max_length": 64, name: value})
                self.assertIn(f"{name}: {value!r}", str(caught.exception))
        self.assertIsNone(HarpLM(model=self.lm.model, max_length=64, enabled=0).options)
        for name, value in (("beams", 0), ("beams", -3), ("pause", -1)):
            with self.subTest(name, value=value), self.assertRaises(harp.HarpError) as caught:
                HarpLM(model=self.lm.model, max_length=64, **{name: value})
            self.assertIn(f"{name}: {value}", str(caught.exception))

    def test_a_negative_prompt_is_formatted_as_its_context(self):
        lm = HarpLM(model=self.lm.model, max_length=64, view="guidance", negative_prompt="A cat")
        self.assertEqual(lm.negative_prompt, lm.model.tokenize("A cat"))
        system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}
        with mock.patch.object(type(lm.model), "apply_chat_template", lambda _, messages: str(messages)):
            self.assertEqual(lm.apply_chat_template([system, question]), str([system, question]))
        formatted = lm.tok_encode(str([system, {"role": "user", "content": "A cat"}]))
        context = str([system, question])
        self.assertEqual([lm.negative_prompt_of(text) for text in (context, context + " more", "", "Why?")],
                         [formatted, formatted, *[lm.model.tokenize("A cat")] * 2])

    def test_tasks_that_run_together_keep_their_negative_prompts(self):
        """All contexts are formatted before the first is read, and each task can have another system message."""
        lm = HarpLM(model=self.lm.model, max_length=64, view="guidance", threshold=0, beta=2, negative_prompt="A cat")
        with mock.patch.object(type(lm.model), "apply_chat_template", lambda _, messages: ". ".join(one["content"] for one in messages)):
            contexts = [lm.apply_chat_template([{"role": "system", "content": system}, {"role": "user", "content": "The dog"}])
                        for system in ("Lily sang", "Tim ran away", "Lily sang")]
        systems = ["Lily sang. A cat", "Tim ran away. A cat", "Lily sang. A cat"]
        scores = lm.loglikelihood(requests("loglikelihood", *[(context, " saw a ball") for context in contexts]), disable_tqdm=True)
        texts = lm.generate_until(requests("generate_until", *[(context, {"max_gen_toks": 6}) for context in contexts]), disable_tqdm=True)
        for context, system, (score, _), text in zip(contexts, systems, scores, texts, strict=True):
            alone = {"negative_prompt": system, "mask_families": [lm._family(context)]}
            pair = lm._encode_pair(context, " saw a ball")
            self.assertAlmostEqual(score, lm.session.score([pair], **alone)[0].log_likelihood, delta=1e-3)
            self.assertEqual(text, next(lm.session.generate_many([context], max_tokens=6, **alone))[1].text)

    def test_contexts_are_not_taken_from_the_request_cache_with_a_negative_prompt(self):
        """They would not be formatted again, and so the negative prompt would not be either."""
        lm = HarpLM(model=self.lm.model, max_length=64, view="guidance", negative_prompt="A cat")
        self.assertNotEqual(lm.tokenizer_name, lm.tokenizer_name)
        self.assertEqual(self.lm.tokenizer_name, self.lm.tokenizer_name)

    def test_numbers_are_checked_at_once(self):
        for name, value in (("max_gen_toks", 0), ("max_gen_toks", "5"), ("seed_of_sampler", -1), ("prefix_token_id", 10**6), ("prefix_token_id", "None"),
                            ("batch_size", "x"), ("batch_size", 0), ("n_threads", "None"), ("pause_text", 5), ("llama_args", "-t 'x")):
            with self.subTest(name, value=value), self.assertRaises((TypeError, ValueError, harp.HarpError)) as caught:
                HarpLM(path=str(TINY), **{"max_length": 64, name: value})
            self.assertIn(f"{name}: ", str(caught.exception))
        for value, n in (("auto", 8), ("auto:4", 8), ("3", 3), (2, 2)):
            self.assertEqual(HarpLM(model=self.lm.model, max_length=64, batch_size=value).session.n_sequences, n)

    def test_flags_as_text_or_list(self):
        for flags in ("-ctk f32", ["-ctk", "f32"], "-ctk 'f32'"):
            lm = HarpLM(path=str(TINY), enabled=False, max_length=64, n_threads=1, llama_args=flags)
            self.assertEqual(lm.model.llama_args, ["-ctk", "f32"])


@unittest.skipUnless(LM_EVAL, "no lm-eval")
@needs_tiny
class Generation(Edges):
    def test_sampling_without_a_temperature_is_refused_as_by_the_hugging_face_backend(self):
        for gen_kwargs in ({"do_sample": True}, {"do_sample": True, "temperature": 0.0}):
            with self.subTest(**gen_kwargs), self.assertRaises(ValueError) as caught:
                self.lm.generate_until(requests("generate_until", (TEXT, {"max_gen_toks": 4, **gen_kwargs})), disable_tqdm=True)
            self.assertIn("temperature above 0", str(caught.exception))
        for gen_kwargs in ({}, {"do_sample": False}, {"do_sample": False, "temperature": 0.7}, {"temperature": 0.0},
                           {"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}):
            with self.subTest(**gen_kwargs):
                [text] = self.lm.generate_until(requests("generate_until", (TEXT, {"max_gen_toks": 4, **gen_kwargs})), disable_tqdm=True)
                self.assertTrue(text)

    def test_examples_and_repetitions_draw_numbers_of_their_own(self):
        """A task's `repeats` are equal requests: with one seed for all a majority of their answers would be one answer."""
        settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "until": []}
        asked = requests("generate_until", *[("Once upon a time", settings)] * 4)
        first = self.lm.generate_until(asked, disable_tqdm=True)
        self.assertGreater(len(set(first)), 1)
        self.assertEqual(self.lm.generate_until(asked, disable_tqdm=True), first)
        alone = self.lm.generate_until(asked[:1], disable_tqdm=True)
        self.assertEqual(alone, first[:1])  # whatever stands beside it

        def seeds(seed_of_sampler):
            found = []
            with mock.patch.object(self.lm, "seed_of_sampler", seed_of_sampler), \
                    mock.patch.object(self.lm.session, "generate_many", lambda *_, sampling, **__: found.extend(sampling) or ()):
                self.lm.generate_until(requests("generate_until", ("Once", settings), ("Twice", settings), ("Once", settings)), disable_tqdm=True)
            return [one.seed for one in found]

        self.assertEqual(len({*seeds(0), *seeds(1)}), 6)

    def test_thoughts_are_no_answer(self):
        lm = HarpLM(model=self.lm.model, enabled=False, think_end_token="</think>")
        answer = harp.Answer(text="It may be 1.</think> 2</think>\n 3. 4", stop_reason="length")
        for one, until, told in ((lm, [], "3. 4"), (lm, ["."], "3"), (self.lm, [], answer.text)):
            with mock.patch.object(one.session, "generate_many", lambda *_, **__: [(0, answer)]):
                self.assertEqual(one.generate_until(requests("generate_until", ("2 + 1", {"until": until, "max_gen_toks": 8})), disable_tqdm=True), [told])

    def test_thoughts_do_not_end_at_stop_texts(self):
        """Few-shot tasks end answers at blank lines, which thoughts have too."""
        [free] = self.lm.generate_until(requests("generate_until", ("Once", {"max_gen_toks": 8})), disable_tqdm=True)
        end, stop = free[4], free[1]  # a text that the model writes takes the part of </think>
        self.assertIn(stop, free.split(end)[0])
        lm = HarpLM(model=self.lm.model, enabled=False, think_end_token=end)
        [text] = lm.generate_until(requests("generate_until", ("Once", {"max_gen_toks": 8, "until": [stop]})), disable_tqdm=True)
        self.assertEqual(text, free.split(end)[-1].lstrip().split(stop)[0])

    def test_number_of_beams_that_a_task_asks_for(self):
        [free] = self.lm.generate_until(requests("generate_until", ("Once", {"max_gen_toks": 4})), disable_tqdm=True)
        self.assertEqual(self.lm.generate_until(requests("generate_until", ("Once", {"max_gen_toks": 4, "num_beams": 1})), disable_tqdm=True), [free])
        with self.assertRaises(ValueError) as caught:
            self.lm.generate_until(requests("generate_until", ("Once", {"max_gen_toks": 4, "num_beams": 10})), disable_tqdm=True)
        self.assertIn("num_beams 10; allowed: 1", str(caught.exception))

    def test_settings_that_are_null_are_not_given(self):
        [free] = self.lm.generate_until(requests("generate_until", ("Once", {"max_gen_toks": 4})), disable_tqdm=True)
        for gen_kwargs in ({"until": None}, {"temperature": None}, {"max_new_tokens": None}, {"until": ("@",)}):
            with self.subTest(**gen_kwargs):
                found = self.lm.generate_until(requests("generate_until", ("Once", {"max_gen_toks": 4, **gen_kwargs})), disable_tqdm=True)
                self.assertEqual(found, [free])

    def test_a_context_that_is_cut_is_said(self):
        self.lm._warned_of_length = False
        with self.assertLogs("harp.lm_eval_model", "WARNING") as logged:
            for _ in range(2):
                self.lm.generate_until(requests("generate_until", (TEXT, {"max_gen_toks": 4})), disable_tqdm=True)
        self.assertEqual(len(logged.output), 1)
        self.assertIn("an answer of up to 4 do not fit max_length=16", logged.output[0])

    def test_a_beam_search_has_the_negative_prompt_and_the_masks_of_its_context(self):
        lm = HarpLM(model=self.lm.model, max_length=64, beams=2, view="guidance", threshold=0, negative_prompt="A cat")
        with mock.patch.object(lm.session, "beam_search", wraps=lm.session.beam_search) as search:
            lm.generate_until(requests("generate_until", *[(text, {"max_gen_toks": 4}) for text in ("Once", "Lily")]), disable_tqdm=True)
        asked = [call.kwargs for call in search.call_args_list]
        self.assertEqual([one["negative_prompt"] for one in asked], [lm.model.tokenize("A cat")] * 2)
        self.assertEqual([one["mask_family"] for one in asked], [zlib.crc32(b"Once"), zlib.crc32(b"Lily")])

    def test_a_beam_search_refuses_to_sample(self):
        lm = HarpLM(model=self.lm.model, enabled=False, max_length=64, beams=2)
        for gen_kwargs in ({"do_sample": True, "temperature": 0.7}, {"repetition_penalty": 1.2}):
            with self.subTest(**gen_kwargs), self.assertRaises(ValueError) as caught:
                lm.generate_until(requests("generate_until", (TEXT, {"max_gen_toks": 4, **gen_kwargs})), disable_tqdm=True)
            self.assertIn("beams=2", str(caught.exception))
        [text] = lm.generate_until(requests("generate_until", (TEXT, {"max_gen_toks": 4, "temperature": 0.0})), disable_tqdm=True)
        self.assertTrue(text)


class EmptyContexts:
    """Whatever happens to a context, the continuation keeps all of its tokens."""

    def test_contexts_without_tokens(self):
        first = self.lm.prefix_token_id
        text = "dog upon a time"
        whole = self.lm.model.tokenize(text, add_special=False)
        [(context, scored)] = self.read(lambda: self.lm.loglikelihood(requests("loglikelihood", ("", text)), disable_tqdm=True))
        self.assertEqual((context, scored), ([first], whole))
        for space in (" ", "   ", "\n", "\n\n \t"):
            with self.subTest(space):
                asked = self.read(lambda: self.lm.loglikelihood(requests("loglikelihood", (space, text)), disable_tqdm=True))
                [(context, scored)] = asked
                self.assertEqual(context, [first])
                self.assertEqual(self.lm.model.detokenize(scored).strip(" "), (space + text).strip(" "))

    def test_one_token_after_nothing(self):
        token = self.lm.model.tokenize("dog", add_special=False)[:1]
        [(value, _)] = self.lm._loglikelihood_tokens([(None, [], token)], disable_tqdm=True)
        [right] = harp.Session(self.lm.model, None, n_ctx=64).score([([self.lm.prefix_token_id], token)])
        self.assertAlmostEqual(value, right.log_likelihood, places=4)

    def test_generation_after_nothing(self):
        [text] = self.lm.generate_until(requests("generate_until", ("", {"until": [], "max_gen_toks": 4})), disable_tqdm=True)
        self.assertTrue(text)

    def test_prefix_token_of_ones_own(self):
        lm = HarpLM(model=self.lm.model, enabled=False, max_length=64, prefix_token_id=3)
        self.assertEqual(lm.prefix_token_id, 3)

    def test_a_vocabulary_with_neither_token(self):
        lm = HarpLM(model=self.lm.model, enabled=False, max_length=64)
        with mock.patch.object(type(lm.model), "bos", -1), mock.patch.object(type(lm.model), "eos", -1), \
                self.assertRaises(ValueError) as caught:
            lm._loglikelihood_tokens([(None, [], [5])], disable_tqdm=True)
        self.assertIn("prefix_token_id", str(caught.exception))


@unittest.skipUnless(LM_EVAL, "no lm-eval")
@needs_tiny
class EmptyContextsWithBos(EmptyContexts, Edges):
    max_length = 256


@unittest.skipUnless(LM_EVAL, "no lm-eval")
@needs_smol
class EmptyContextsWithoutBos(EmptyContexts, Edges):
    """SmolLM2 adds no token before a text, so a context may have no tokens."""

    model = SMOL
    max_length = 256

    def test_has_no_token_before_a_text(self):
        self.assertEqual(self.lm.model.tokenize(""), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
