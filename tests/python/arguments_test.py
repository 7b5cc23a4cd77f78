#!/usr/bin/env python3
"""Arguments that could be misread: one text where several are expected, sizes of more than 32 bits."""

import dataclasses
import json
import math
import os
import pickle
import sys
import typing
import unittest
from decimal import Decimal
from pathlib import Path

import numpy as np

import harp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import TINY, needs_tiny


@needs_tiny
class Arguments(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = harp.Model(TINY, n_threads=1)
        cls.session = harp.Session(cls.model, None, n_ctx=256)

    def answer(self, **more):
        stream = self.session.generate("Once upon a time, there was", max_tokens=40, **more)
        for _ in stream:
            pass
        return stream.answer

    def test_results_with_arrays_can_be_compared(self):
        session = harp.Session(self.model, None, n_ctx=64)
        first, other = session.score([("Once upon a", " time"), ("Once upon a", " dog")])
        self.assertEqual(first, dataclasses.replace(first))
        self.assertEqual(first, pickle.loads(pickle.dumps(first)))
        self.assertNotEqual(first, other)
        self.assertNotEqual(first, None)
        self.assertEqual([other, first].index(pickle.loads(pickle.dumps(first))), 1)
        forward = session.forward(self.model.tokenize("Once upon"), all=True)
        self.assertEqual(forward, pickle.loads(pickle.dumps(forward)))
        self.assertNotEqual(forward, session.forward(self.model.tokenize("Once"), all=True))

    def test_types_say_what_they_hold(self):
        """A type checker in strict mode refuses a dict of it knows not what."""
        def bare(kind):
            return kind in (dict, list, tuple, np.ndarray, os.PathLike) or any(map(bare, typing.get_args(kind)))

        def hints_of(value):
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if callable(function) and not isinstance(function, type):
                yield from typing.get_type_hints(function).items()

        for name in harp.__all__:
            owner = getattr(harp, name)
            members = {name: owner, **{key: value for key, value in vars(owner).items() if not key.startswith("_") or key == "__init__"}}
            hints = dict(typing.get_type_hints(owner)) if isinstance(owner, type) else {}
            for member, value in members.items():
                hints |= {f"{member}.{key}": kind for key, kind in hints_of(value)}
            for where, kind in hints.items():
                with self.subTest(name, where=where):
                    self.assertFalse(bare(kind), kind)

    def test_one_stop_string_is_not_its_letters(self):
        stop = self.answer().text[10:14]
        right = self.answer(stop=[stop])
        self.assertEqual(right.stop_reason, "stop_string")
        for one in (stop, (stop,), {stop}, iter([stop]), {stop: 1}.keys()):
            self.assertEqual(self.answer(stop=one).text, right.text)
        [(_, many)] = self.session.generate_many(["Once upon a time, there was"], max_tokens=40, stop=iter([stop]))
        self.assertEqual(many.text, right.text)

    def test_what_is_no_list_of_texts_is_refused_by_name(self):
        session, model = self.session, self.model
        prompts = ["Once", "Once"]
        for words, call in {
            ("stop", "b'END'"): lambda: session.generate("Once", stop=b"END"),
            ("stop[1]", "3"): lambda: session.generate("Once", stop=["END", 3]),
            ("stop", "None"): lambda: session.generate("Once", stop=None),
            ("prompts", "'Once'", "[prompt]"): lambda: list(session.generate_many("Once")),
            ("prompts", "b'Once'"): lambda: list(session.generate_many(b"Once")),
            ("prompt[0]", "'Once'"): lambda: session.generate(["Once", "upon"]),
            ("prompt[0]", "1.5"): lambda: session.generate([1.5]),
            ("prompt[0]", "array"): lambda: session.generate(np.array([[1, 5]])),
            ("prompt", "b'Once'", "a text or token ids"): lambda: session.generate(b"Once"),
            ("prompts[1]", "7", "a text or token ids"): lambda: list(session.generate_many(["Once", 7])),
            ("requests[1][0]", "None"): lambda: session.score([("Once", " upon"), (None, " upon")]),
            ("requests[0][1]", "1.5"): lambda: session.score([("Once", [1.5])]),
            ("negative_prompt", "3"): lambda: session.generate("Once", negative_prompt=3),
            ("length_penalty", "'1'"): lambda: session.beam_search("Once", beams=1, length_penalty="1"),
            ("length_penalty", "None"): lambda: session.beam_search("Once", beams=1, length_penalty=None),
            ("add_special", "'no'"): lambda: model.tokenize("Once", add_special="no"),
            ("parse_special", "None"): lambda: model.tokenize("Once", parse_special=None),
            ("tokens", "array(5)"): lambda: session.forward(np.array(5)),
            ("all", "'no'"): lambda: session.forward([1], all="no"),
            ("all", "2"): lambda: session.forward([1], all=2),
            ("special", "'no'"): lambda: model.detokenize([1], special="no"),
            ("token", "'2'"): lambda: model.is_end("2"),
            ("model", "'model.gguf'"): lambda: harp.Session("model.gguf"),
            ("unified", "'no'"): lambda: harp.Session(model, n_ctx=64, unified="no"),
            ("kernels", "None"): lambda: harp.Model(TINY, kernels=None),
            ("n_threads", "1.5"): lambda: harp.Model(TINY, n_threads=1.5),
            ("n_gpu_layers", "1.5"): lambda: harp.Model(TINY, n_gpu_layers=1.5),
            ("tokens", "'Once'"): lambda: session.forward("Once"),
            ("tokens", "'Once'"): lambda: model.detokenize("Once"),
            ("requests", "'Once'"): lambda: session.score("Once"),
            ("requests[0]", "'Once'", "pair"): lambda: session.score(("Once", " upon")),
            ("requests[0]", "pair"): lambda: session.score([("Once", " upon", " a")]),
            ("options", "HarpOptions"): lambda: session.score_each([("Once", " upon")], harp.HarpOptions()),
            ("mask_families", "3"): lambda: list(session.generate_many(prompts, mask_families=3)),
            ("mask_families[0]", "'1'"): lambda: list(session.generate_many(prompts, mask_families=["1", "2"])),
            ("llama_args", "'-ngl 99'", '["-ngl", "99"]'): lambda: harp.Model(TINY, llama_args="-ngl 99"),
            ("llama_args[1]", "99"): lambda: harp.Model(TINY, llama_args=["-ngl", 99]),
            ("messages", "'Hi'", '"role"'): lambda: model.apply_chat_template("Hi"),
            ("messages", "'role'"): lambda: model.apply_chat_template({"role": "user", "content": "Hi"}),
            ("messages[0]", "'Hi'"): lambda: model.apply_chat_template(["Hi"]),
            ("options", "{'beta': 1}", "HarpOptions"): lambda: session.generate("Once", options={"beta": 1}),
            ("options", "False"): lambda: session.score([("Once", " upon")], options=False),
            ("options", "'off'"): lambda: session.score_each([("Once", " upon")], ["off"]),
            ("options", "{}"): lambda: session.beam_search("Once", options={}),
            ("options", "{'beta': 2}"): lambda: harp.Session(model, {"beta": 2}),
            ("sampling", "0.7", "Sampling"): lambda: session.generate("Once", sampling=0.7),
            ("text", "b'Once'"): lambda: model.tokenize(b"Once"),
            ("temperature", "'1'"): lambda: harp.Sampling(temperature="1"),
            ("top_p", "None"): lambda: harp.Sampling(top_p=None),
            ("grammar", "None"): lambda: harp.Sampling(grammar=None),
            ("messages[0]", "None"): lambda: model.apply_chat_template([{"role": "user", "content": None}]),
        }.items():
            with self.subTest(words=words), self.assertRaises(TypeError) as caught:
                call()
            self.assertNotIn("incompatible function arguments", str(caught.exception))
            self.assertIn("allowed", str(caught.exception))
            for word in words:
                self.assertIn(word, str(caught.exception))

    def test_sizes_name_argument_value_and_range(self):
        session, model, large = self.session, self.model, 2**40
        last = harp.HarpOptions(view="last", view_tokens=8)
        for words, call in {
            ("n_ctx: 2147483648", "2..2147483647"): lambda: harp.Session(model, None, n_ctx=2**31),
            ("n_ctx: 1431655766", "2..715827882"): lambda: harp.Session(model, harp.HarpOptions(reframings=2), n_ctx=1431655766),
            ("n_ctx: 1073741824", "2..1073741823"): lambda: harp.Session(model, None, n_ctx=2**30, n_sequences=2),
            ("n_ctx: 4294967298", "2.."): lambda: harp.Session(model, None, n_ctx=2**32 + 2),
            ("n_ctx: -1", "2.."): lambda: harp.Session(model, None, n_ctx=-1),
            ("n_sequences: 257", "1..256"): lambda: harp.Session(model, None, n_ctx=64, n_sequences=257),
            ("n_sequences: 4294967297", "1..256"): lambda: harp.Session(model, None, n_ctx=64, n_sequences=2**32 + 1),
            ("n_sequences: -1", "1..256"): lambda: harp.Session(model, None, n_ctx=64, n_sequences=-1),
            ("n_ctx_twin: -1", "0..2147483647"): lambda: harp.Session(model, n_ctx=64, n_ctx_twin=-1),
            ("n_ctx_twin: 8", "unified=True"): lambda: harp.Session(model, last, n_ctx=64, n_sequences=2, n_ctx_twin=8),
            ("view_tokens': 9", "n_ctx_twin", "1..8"): lambda: harp.Session(model, last.replace(view_tokens=9), n_ctx=64, n_ctx_twin=8),
            ("'view': perturbed", "n_ctx_twin"): lambda: harp.Session(model, n_ctx=64, n_ctx_twin=8),
            ("max_tokens: 1099511627776", "-1..2147483647"): lambda: session.generate("Once", max_tokens=large),
            ("max_tokens: -2", "-1.."): lambda: session.generate("Once", max_tokens=-2),
            ("mask_family: 4294967296", "0..4294967295"): lambda: session.generate("Once", mask_family=2**32),
            ("mask_families[1]: -1", "0.."): lambda: session.score([([1], [2])] * 2, mask_families=[0, -1]),
            ("mask_families: 1 for 2",): lambda: session.score([([1], [2])] * 2, mask_families=[0]),
            ("seed: 4294967296", "0..4294967295"): lambda: session.generate("Once", sampling=harp.Sampling(seed=2**32)),
            ("top_k: 4294967296",): lambda: session.generate("Once", sampling=harp.Sampling(top_k=2**32)),
            ("prompt[1]: 1099511627776", "0..511"): lambda: session.generate([1, large]),
            ("requests[0][0][1]: 512", "0..511"): lambda: session.score([([1, 512], [2])]),
            ("prompt[0]: -1", "0..511"): lambda: session.generate([-1]),
            ("tokens[0]: 4294967297",): lambda: session.forward([2**32 + 1]),
            ("n: 18446744073709551616", "0..0"): lambda: session.truncate(2**64),
            ("temperature: nan", "0..3.4e+38"): lambda: harp.Sampling(temperature=math.nan),
            ("temperature: inf", "0..3.4e+38"): lambda: harp.Sampling(temperature=math.inf),
            ("temperature: -1", "0..3.4e+38"): lambda: harp.Sampling(temperature=-1),
            ("temperature: 1e+39", "0..3.4e+38"): lambda: harp.Sampling(temperature=1e39),
            ("top_p: 2", "0..1"): lambda: harp.Sampling(top_p=2),
            ("top_p: nan", "0..1"): lambda: harp.Sampling(top_p=math.nan),
            ("min_p: -0.1", "0..1"): lambda: harp.Sampling(min_p=-0.1),
            ("repeat_penalty: 0", "> 0"): lambda: harp.Sampling(repeat_penalty=0),
            ("repeat_penalty: nan", "> 0"): lambda: harp.Sampling(repeat_penalty=math.nan),
            ("max_tokens: -2", "-1..2147483647"): lambda: session.beam_search("Once", max_tokens=-2),
            ("prompt: '\\ud800' at index 1",): lambda: session.generate("a\ud800b"),
            ("requests[0][1]: '\\udcff' at index 0",): lambda: session.score([("Once", "\udcff")]),
            ("stop[1]: '\\ud800'",): lambda: session.generate("Once", stop=["END", "\ud800"]),
            ("grammar: '\\ud800'",): lambda: harp.Sampling(grammar="\ud800"),
            ("option 'view': '\\ud800'",): lambda: harp.HarpOptions(view="\ud800"),
            ("beams: 4294967297",): lambda: session.beam_search("Once", beams=2**32 + 1),
            ("candidates: 0",): lambda: session.beam_search("Once", beams=1, candidates=0),
            ("length_penalty: nan", "0..3.4e+38"): lambda: session.beam_search("Once", beams=1, length_penalty=math.nan),
            ("token: 1099511627776", "-1..511"): lambda: model.is_end(large),
            ("n_threads: 513", "-1..512"): lambda: harp.Model(TINY, n_threads=513),
            ("path: '\\udcff' at index 5",): lambda: harp.Model(b"model\xff.gguf"),
        }.items():
            with self.subTest(words=words), self.assertRaises(harp.HarpError) as caught:
                call()
            self.assertIn(caught.exception.code, ("invalid_option", "invalid_input"))
            for word in words:
                self.assertIn(word, str(caught.exception))

    def test_numbers_of_numpy_are_numbers(self):
        self.assertEqual(harp.Sampling(temperature=np.float32(0.5), top_k=np.int64(3)), harp.Sampling(temperature=0.5, top_k=3))
        tokens = np.array(self.model.tokenize("Once upon"))
        self.assertEqual(self.model.detokenize(tokens).strip(), "Once upon")
        [score] = self.session.score([(tokens, tokens[:1])], mask_families=np.array([3]))
        self.assertEqual(len(score.harp), 1)

    def test_options_of_other_types_are_those_of_python(self):
        options = harp.HarpOptions(threshold=np.float64(1.5), strength=np.array(0.25), beta=Decimal("0.5"), seed=np.int64(3), reframings=np.int8(2))
        self.assertEqual(json.loads(json.dumps(dataclasses.asdict(options))), dataclasses.asdict(options))
        self.assertEqual(options, harp.HarpOptions(threshold=1.5, strength=0.25, seed=3, reframings=2))

    def test_flags_that_are_given_elsewhere_are_refused(self):
        for flags, words in {("-m", str(TINY)): "-m is given as path", ("--hf-repo", "a/b"): "--hf-repo is given as path",
                             ("--harp-threshold", "2"): "to Session", ("-t", "1", "--harp-off"): "llama_args[2]: --harp-off is given to Session",
                             ("--harp-kernels", "off"): "--harp-kernels is given as kernels"}.items():
            with self.subTest(flags), self.assertRaises(harp.HarpError) as caught:
                harp.Model(TINY, llama_args=flags)
            self.assertIn(words, str(caught.exception))

    def test_paths(self):
        for path in (str(TINY), os.fsencode(TINY)):
            self.assertEqual(harp.Model(path, n_threads=1).path, str(TINY))

    def test_a_continuation_that_fills_the_context(self):
        text = [1, *range(3, 3 + 256)]
        n = self.session.n_ctx
        [score] = self.session.score([(text[:1], (text * 2)[1:n + 1])])
        self.assertEqual(len(score.harp), n)
        with self.assertRaises(harp.HarpError) as caught:
            self.session.score([(text[:1], (text * 2)[1:n + 2])])
        self.assertIn(f"{n + 2} tokens; allowed: 2..{n + 1}", str(caught.exception))


if __name__ == "__main__":
    unittest.main(verbosity=2)
