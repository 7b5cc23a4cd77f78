#!/usr/bin/env python3
"""Models, options and sessions of the Python package: values, errors, threads, a chat.

Needs the package (`pip install .`, or ./test); finds command and models like the other tests.
"""

import dataclasses
import math
import pickle
import shutil
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import gguf
import numpy as np

import harp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import MODELS, SMOL, TINY, needs_smol, needs_tiny
from python_engine import OPTIONS, tiny


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
