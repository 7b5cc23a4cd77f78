#!/usr/bin/env python3
"""Faults that harp-server can meet: each gets the right status and a helpful message, and does not affect other clients.

After each test the server must be the same process, idle, and give the same greedy answer as at first.
"""

import concurrent.futures
import json
import os
import signal
import socket
import sys
import tempfile
import time
import unittest
from http.client import HTTPConnection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import needs_tiny
from running_server import EXACT, OneServer, Server

DEEP = b"[" * 100_000 + b"]" * 100_000


def exchange(port, data, hang_up=False):
    """(status, body) of the answer to these bytes; status 0 if the connection ends without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body.decode("utf-8", "replace")


def http(target, body=b"", method=b"POST", *headers):
    lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: x", b"Connection: close", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", b""]) + body


@needs_tiny
class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        (cls.folder / "site").mkdir()
        (cls.folder / "slots").mkdir()
        (cls.folder / "site/page.html").write_text("page")
        (cls.folder / "secret").write_text("secret")
        (cls.folder / "site/link").symlink_to(cls.folder / "secret")
        cls.start()
        cls.answer = cls.server.complete("Once upon a time")

    @classmethod
    def start(cls):
        cls.server = Server("-np", "4", "-c", "2048", *EXACT, "--slots", "--path", str(cls.folder / "site"),
                            "--slot-save-path", f"{cls.folder}/slots/")
        cls.addClassCleanup(cls.server.stop)

    def setUp(self):
        if self.server.process.poll() is not None:  # after a failure of another test
            self.start()

    def tearDown(self):
        self.assertIsNone(self.server.process.poll(), "the server died")
        deadline = time.monotonic() + 20
        while any(slot["is_processing"] for slot in self.server.get("/slots")):
            self.assertLess(time.monotonic(), deadline, "a slot is still busy")
            time.sleep(0.05)
        self.assertEqual(self.server.complete("Once upon a time"), self.answer)

    def expect(self, status, message, body, path="/completion"):
        """Sends a request. The answer must have this status and contain this message."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.subTest(path=path, body=data[:200]):
            got, said = exchange(self.server.port, http(path.encode(), data))
            self.assertEqual(got, status, said[:300])
            self.assertIn(message, said)

    def ask(self, status, message, **fields):
        self.expect(status, message, {"prompt": "Once", "n_predict": 2, "temperature": 0, **fields})

    def test_bodies_that_are_no_request(self):
        for body, message in [(b"{", "parse error"), (b"", "empty input"), (b'{"prompt": "\xff"}', "UTF-8"),
                              (b"[" * 100_000, "too deep"), (b'{"prompt": "\\ud800"}', "surrogate"),
                              (b'{"prompt": "x", "harp": {"beta": NaN}}', "parse error"),
                              (b'{"prompt": "x", "harp": {"beta": 1e400}}', "1e400")]:
            for path in ["/completion", "/v1/chat/completions"]:
                self.expect(400, message, body, path)
        for body, message in [(b"5", "error"), (b"null", "error"), (b"[]", "error"), (b"{}", "prompt"), (DEEP, "error")]:
            self.expect(400, message, body)
        self.expect(200, "content", {"prompt": "x", "n_predict": 1, "other": "y" * 50_000_000})
        self.expect(413, '"code":413', b"[" + b" " * 105_000_000 + b"]")

    def test_deep_bodies(self):
        for harp in [b"%s", b'{"beta": %s}', b'{"enabled": %s}', b'{"other": %s}']:
            self.expect(400, "too deep", b'{"prompt": "x", "n_predict": 1, "harp": ' + harp % DEEP + b"}")
        body = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "harp": ' + DEEP + b"}"
        self.expect(400, "too deep", body, "/v1/messages")
        kwargs = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "chat_template_kwargs": {"x": ' + DEEP + b"}}"
        self.expect(400, "too deep", kwargs, "/v1/chat/completions")
        self.ask(200, "content", prompt="[" * 500)  # inside a text they are not levels
        self.ask(200, "content", prompt='\\"' * 50 + "{" * 300)

    def test_harp_options(self):
        for harp, message in [(True, "not an object"), ([], "not an object"), ({"beta": None}, "harp.beta"),
                              ({"beta": True}, "harp.beta"), ({"enabled": "false"}, "harp.enabled"), ({"seed": -1}, "-1"),
                              ({"seed": 2**64}, "seed"), ({"": 1}, "known"), ({"threshold": "nan"}, "threshold"),
                              ({"beta": {"beta": 1}}, "harp.beta"), ({"redraw": 2**32}, "4294967296"),
                              ({"bêta": 1}, "did you mean 'beta'"), ({"strength": 2}, "strength"),
                              ({f"k{i}": i for i in range(10_000)}, "k0"), ({"beta": "9" * 100_000}, "out of range")]:
            self.ask(400, message, harp=harp)
        self.ask(400, "unknown option", harp={"k" * 10_000_000: 1})
        self.expect(400, "9", b'{"prompt": "x", "harp": {"beta": 0.1, "beta": 9}}')  # the second value counts
        for harp in [None, {}, {"threshold": "inf"}, {"seed": 2**64 - 1}, {"seed": 7.0}, {"threshold": 0, "beta": 0, "strength": 1},
                     {"threshold": 0, "beta": 0, "perturbation": "gaussian", "strength": 1e6}]:
            self.ask(200, "content", harp=harp, n_probs=2)

    def test_a_slot_that_had_other_options(self):
        for harp in [{"enabled": False}, {"threshold": 3, "beta": 0.2}, {"seed": 5, "redraw": 1}, {"strength": 0.7},
                     {"perturbation": "gaussian", "strength": 1}, {"scope": "generated"}]:
            ask = {"prompt": "Once upon a time", "id_slot": 0, "n": 32}
            alone = self.server.complete(**ask, cache_prompt=False, harp=harp)
            for before, after, expected in [({}, harp, alone), (harp, {}, self.server.complete(**ask, cache_prompt=False))]:
                for prompt in ["Once upon", "Once upon a time", "Once upon a time, there was a little girl"]:
                    with self.subTest(before=before, prompt=prompt, after=after):
                        self.server.complete(prompt, 32, id_slot=0, cache_prompt=False, harp=before)
                        self.assertEqual(self.server.complete(**ask, harp=after), expected)

    def test_fields(self):
        for field in ["n_predict", "temperature", "stream", "cache_prompt", "n_probs", "json_schema", "repeat_last_n"]:
            self.ask(400, field, **{field: "many"})
            self.ask(400, field, **{field: [1]})
        for field, value in [("n_predict", -2), ("n_predict", 2**31), ("n_cmpl", 0), ("n_cmpl", 5), ("stop", [5])]:
            self.ask(400, field, **{field: value})
        for value in [5, 5.5, {}, [[], 5.5]]:
            self.ask(400, "prompt", prompt=value)
        for field, value in [("n_predict", 0), ("n_cmpl", 4), ("stop", ["a"] * 10_000), ("stop", ["", None, "x" * 1_000_000]),
                             ("logit_bias", [[5, 1e38], ["a", False], [7.0, 1]]), ("logit_bias", {"9": -1, "-": False}),
                             ("logit_bias", [[i, False] for i in range(512)]),
                             ("json_schema", {"type": "string", "pattern": "^(a+)+$"})]:
            self.ask(200, "content", **{field: value})
        self.ask(400, "chat format", chat_format=-1)
        self.ask(400, "reasoning", reasoning_format="x")
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        for field, value in [("tools", "x"), ("tools", [1]), ("tools", [{"type": "x"}]), ("tool_choice", "some"), ("reasoning_format", "x")]:
            self.expect(400, "", {**chat, field: value}, "/v1/chat/completions")
        both = {"json_schema": {"type": "object"}, "grammar": 'root ::= "x"'}
        self.expect(400, "both json_schema and grammar", {**chat, **both}, "/v1/chat/completions")
        self.ask(400, "grammar", grammar="root ::= (")
        for temperature in (0, 1):  # nothing is allowed but the end, which is forbidden: the answer ends all the same
            self.ask(200, '"content":"yes"', grammar='root ::= "yes"', ignore_eos=True, n_predict=9, temperature=temperature)
        self.ask(400, "grammar", grammar="root ::= root")
        self.ask(400, "pattern", json_schema={"type": "string", "pattern": "^[$"})
        for n_predict in [-1, 10**9]:  # bounded by the context
            self.ask(200, '"truncated":true', n_predict=n_predict, ignore_eos=True)

    def test_values_of_a_wrong_kind(self):
        """None is passed over or taken modulo 2^32: the message names the field and the value."""
        tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        for field, values in {
            "max_tokens": [2**40, 2**32 + 1, 2**64, -5, 1.5, "3", True], "n_predict": [2**40, 1.5], "n_keep": [2**32 + 1, -5],
            "n": [2**32 + 1, 1.5, True], "seed": [2**70, 1.5, "7"], "id_slot": [2**40, -2, 1.5, "0", 4], "logprobs": [-1, 1.5, 2**32 + 1, {}],
            "temperature": ["hot", True, 1e300], "top_k": [1.5], "stop": [5, {}, True, [5], ["a", []]], "samplers": [5, {}, ["top_k", "top"], [5], "k#"], "grammar": [5, {}, True],
            "logit_bias": [5, "x", True, [5], [[5]], [[5, "x"]], [[5, 1e300]], [[-5, 1]], [[2**32 + 5, 1]], {"512": 1}, {"9" * 20: 1}, {"5": None}],
            "stream": ["yes", 1], "stream_options": [5], "response_fields": [5, "x", [5]], "lora": [[5]],
        }.items():
            for value in values:
                paths = ["/completion", "/v1/completions"] + ["/v1/chat/completions"] * (field != "response_fields")
                for path in paths:
                    own = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
                    self.expect(400, field, {**own, "max_tokens": 1, field: value}, path)
        for seed in [2**40, -2, 2**63 - 1, -(2**63)]:  # OpenAI's have 64 bits
            self.expect(200, "text", {"prompt": "x", "max_tokens": 1, "seed": seed}, "/v1/completions")
        for field, value in [("suffix", "x"), ("best_of", 2), ("response_format", {"type": "json_object"})]:
            self.expect(400, field, {"prompt": "x", "max_tokens": 1, field: value}, "/v1/completions")
        self.expect(200, "text", {"prompt": "x", "max_tokens": 1, "n": 2, "best_of": 2, "suffix": ""}, "/v1/completions")
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        for field, values in {
            "response_format": [5, "json", {"type": "sound"}, {"type": 5}, {"type": "json_schema", "json_schema": {"schema": 5}}],
            "tool_choice": [5, "some", "required", {}, {"type": "function", "function": {"name": "weather"}}], "functions": [[{"name": "x"}]],
            "tools": [5, [5], [{"type": "function"}], [{"type": "function", "function": {"name": "x", "parameters": 5}}]],
            "modalities": [["audio"]], "parallel_tool_calls": [5], "chat_template_kwargs": [5], "reasoning_effort": [5],
            "continue_final_message": [5], "add_generation_prompt": [5], "thinking_budget_tokens": ["x", 2**40],
        }.items():
            for value in values:
                self.expect(400, field, {**chat, field: value}, "/v1/chat/completions")
        for more, message in [({"top_logprobs": -1}, "top_logprobs"), ({"top_logprobs": 2**40}, "top_logprobs")]:
            self.expect(400, message, {**chat, "logprobs": True, **more}, "/v1/chat/completions")
        self.expect(400, r"'tools': \"weather\"", {**chat, "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "x"}}},
                    "/v1/chat/completions")
        for kind in [picture, {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]:
            self.expect(400, kind["type"], {**chat, "messages": [{"role": "user", "content": [kind]}]}, "/v1/chat/completions")
        for choice in ["required", {"type": "function", "function": {"name": "weather"}}]:  # the template has no tools
            self.expect(400, "tool_choice", {**chat, "tools": [tool], "tool_choice": choice}, "/v1/chat/completions")
        self.expect(200, "content", {**chat, "tools": [tool]}, "/v1/chat/completions")
        for field, value in [("instructions", 5), ("max_output_tokens", 2**40), ("text", 5), ("text", {"format": {"type": "sound"}}), ("reasoning", 5),
                             ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}])]:
            named = "image_url" if field == "input" else field
            self.expect(400, named, {"input": "x", "max_output_tokens": 1, field: value}, "/v1/responses")
        self.expect(200, "output", {"input": "x", "max_output_tokens": 1, "instructions": None, "tools": None}, "/v1/responses")
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
        for field, value in [("system", 5), ("stop_sequences", [5]), ("tool_choice", {"type": "tool", "name": "x"}), ("thinking", 5), ("output_config", 5),
                             ("format", {"output_config": {"format": {"type": "x"}}}), ("format", {"output_format": {"type": "json_schema"}}),
                             ("image", [image]), ("document", [{"type": "document", "source": {"type": "text", "data": "x"}}])]:
            body = {"messages": [{"role": "user", "content": value}]} if isinstance(value, list) and field != "stop_sequences" else {field: value}
            body = value if field == "format" else body
            self.expect(400, field, {**chat, **body}, "/v1/messages")
        for field, value in [("messages", 5), ("messages[0]", [5]), ("messages[0].content", [{"role": "user", "content": [{"text": "x"}]}]),
                             ("messages[0].content", [{"role": "user", "content": [{"type": "search_result", "content": "x"}]}]),
                             ("messages[0].content.content", [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "document"}]}]}]),
                             ("system[0]", [{"text": "x"}]), ("tools", {"name": "x"}), ("tools[0]", [{"type": "function", "function": {"name": "x"}}]),
                             ("tools[0].input_schema", [{"name": "x", "input_schema": 5}])]:
            self.expect(400, f'"{field}: ', {**chat, field.split("[")[0]: value}, "/v1/messages")
        for field, value in [("conversation", "c"), ("prompt", {"id": "p"}), ("background", True)]:
            self.expect(400, field, {"input": "x", "max_output_tokens": 1, field: value}, "/v1/responses")
        for ids in [[2**32 + 5], ["x", 2**40]]:
            self.ask(400, "token: ", prompt=ids)
            self.expect(400, "token: ", {"tokens": [2**32 + 5]}, "/detokenize")

    def test_prompts(self):
        for prompt in ["word " * 5000, [5] * 512, [5] * 5000]:
            self.ask(400, "exceed_context_size_error", prompt=prompt)
            self.ask(400, "exceed_context_size_error", prompt=prompt, stream=True)
        chat = {"messages": [{"role": "user", "content": "word " * 5000}]}
        self.expect(400, "exceed_context_size_error", chat, "/v1/chat/completions")
        self.ask(200, '"stop_type":"limit"', prompt=[5] * 511)
        for ids in [[1, -1], [1, 512], [1, 10**9], ["Once", -5], [-(2**31)]]:
            self.ask(400, "invalid tokens", prompt=ids)
        for ids in [[1, -1], [512]]:
            self.expect(400, "allowed: 0..511", {"tokens": ids}, "/detokenize")
            for field in ("content", "prompt"):
                self.expect(400, field + ": ", {field: ["Once", *ids], "with_pieces": True}, "/tokenize")
                self.expect(400, field + ": 5", {field: 5}, "/tokenize")
        for path in ["/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"]:
            self.expect(400, "'messages' is required", {"max_tokens": 1}, path)

    def test_clients_that_hang_up(self):
        data = http(b"/completion", json.dumps({"prompt": "Once", "n_predict": 400, "stream": True, "ignore_eos": True}).encode())

        def leave(number):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=30) as connection:
                connection.sendall(data[:len(data) - number % 2])  # every second one ends in mid-request
                if number % 2 == 0:
                    connection.recv(64)

        def files_and_memory():
            time.sleep(0.5)
            status = Path(f"/proc/{self.server.process.pid}/status").read_text()
            return len(os.listdir(f"/proc/{self.server.process.pid}/fd")), int(status.split("RssAnon:")[1].split()[0])

        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            list(pool.map(leave, range(100)))
            files, memory = files_and_memory()
            list(pool.map(leave, range(200)))
        after = files_and_memory()
        self.assertLess(after[0] - files, 20)
        self.assertLess(after[1] - memory, 20_000)  # KiB

    def test_slow_clients(self):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            slow = []
            try:
                for _ in range(50):  # one by one: in a burst cpp-httplib adds no threads for connections beyond its idle threads
                    slow.append(socket.create_connection(("127.0.0.1", self.server.port)))
                    time.sleep(0.05)
                for byte in b"POST":
                    for connection in slow:
                        connection.sendall(bytes([byte]))
                    self.assertEqual(pool.submit(self.server.complete, "Once upon a time").result(20), self.answer)
            finally:
                for connection in slow:
                    connection.close()

    def test_odd_http(self):
        def length(text):
            return b"POST /completion HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % text

        body = b'{"prompt": "Once", "n_predict": 2}'
        chunked = b"POST /completion HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
        for status, data in [
            (200, chunked + b"\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"), (400, chunked + b"\r\nZZ\r\n" + body),
            (400, chunked + b"Content-Length: 5\r\n\r\n5\r\n" + body), (400, length(b"500") + body), (400, length(b"-5") + body),
            (400, length(b"9" * 20) + body), (400, length(b"abc") + body), (400, length(b"5\r\nContent-Length: 6") + body),
            (400, length(b"5") + body), (400, b"\x00\xff garbage\r\n\r\n"), (400, b"GET /health HTTP/9.9\r\n\r\n"),
            (400, b"GET /health HTTP/1.1\r\nX: " + b"a" * 30_000 + b"\r\n\r\n"), (0, b""),
            (404, http(b"/completion", method=b"PUT")), (404, http(b"/completion", method=b"HEAD")),
            (200, http(b"/completion", method=b"OPTIONS")), (200, http(b"/health", method=b"HEAD")),
        ]:
            with self.subTest(data=data[:80]):
                self.assertEqual(exchange(self.server.port, data, hang_up=True)[0], status)
        for code, header, message in [(400, b"Content-Type: multipart/form-data", "Bad Request"),
                                      (415, b"Content-Encoding: gzip", "Unsupported Media Type")]:
            status, said = exchange(self.server.port, http(b"/completion", body, b"POST", header))
            self.assertEqual((status, json.loads(said)["error"]["code"], json.loads(said)["error"]["message"]), (code, code, message))

    def test_a_connection_is_used_again(self):
        """Behind a stream too: the answer says that the connection stays."""
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        self.addCleanup(connection.close)
        for body, status in [({"prompt": "x"}, 200), ({"prompt": "x", "stream": True}, 200), ({"prompt": "x", "stream": True}, 200), ({}, 400),
                             ({"prompt": "x"}, 200)]:
            connection.request("POST", "/completion", json.dumps({**body, "n_predict": 2}))
            answer = connection.getresponse()
            self.assertEqual(answer.status, status)
            answer.read()

    def test_files_outside(self):
        self.assertEqual(exchange(self.server.port, http(b"/page.html", method=b"GET")), (200, "page"))
        for target in [b"/../secret", b"/%2e%2e/secret", b"/%2e%2e%2fsecret", b"/x/../../secret", b"/link", b"/..\\secret",
                       b"/..%5csecret", b"/%252e%252e/secret", b"/page.html%00", b"/" + bytes(self.folder / "secret"),
                       b"//" + bytes(self.folder / "secret")]:
            with self.subTest(target=target):
                status, said = exchange(self.server.port, http(target, method=b"GET"))
                self.assertIn(status, (403, 404))
                self.assertNotIn("secret", said)
        for name in ["../x", "/x", "a/b", "..", "", "x\0y", "..\\x", "a" * 300]:
            for action in ["save", "restore"]:
                self.expect(400, "Invalid filename", {"filename": name}, f"/slots/0?action={action}")
        (self.folder / "slots/rubbish").write_bytes(b"rubbish" * 100)
        self.expect(400, "restore", {"filename": "rubbish"}, "/slots/0?action=restore")
        self.expect(400, "restore", {"filename": "none"}, "/slots/0?action=restore")
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["secret", "site", "slots"])


@needs_tiny
class Infilling(OneServer, unittest.TestCase):
    """With tokens that the vocabulary has for other purposes."""

    flags = [flag for token, name in enumerate(("fim_pre", "fim_suf", "fim_mid"), start=300)
             for flag in ("--override-kv", f"tokenizer.ggml.{name}_token_id=int:{token}")]

    def test_fields(self):
        whole = {"input_prefix": "Once upon", "input_suffix": "time", "n_predict": 2, "temperature": 0}
        for more, status, message in [({}, 200, '"steps":2'), ({"harp": {"betta": 1}}, 400, "betta"), ({"prompt": 5}, 400, "must be a string"),
                                      ({"input_prefix": None}, 400, "input_prefix: null"), ({"input_suffix": ["x", 512]}, 400, "input_suffix: 512"), ({"input_extra": 5}, 400, "must be an array")]:
            with self.subTest(more=more):
                got, said = exchange(self.server.port, http(b"/infill", json.dumps({**whole, **more}).encode()))
                self.assertEqual(got, status, said[:300])
                self.assertIn(message, said)
        for name in ("input_prefix", "input_suffix"):
            body = {key: value for key, value in whole.items() if key != name}
            self.assertIn("is required", exchange(self.server.port, http(b"/infill", json.dumps(body).encode()))[1])


@needs_tiny
class Starting(unittest.TestCase):
    def test_killed_and_started_again_on_its_port(self):
        first = Server("-c", "256")
        answer = first.complete("Once")
        stream = socket.create_connection(("127.0.0.1", first.port))
        self.addCleanup(stream.close)
        stream.sendall(http(b"/completion", b'{"prompt": "x", "stream": true, "ignore_eos": true}'))
        stream.recv(64)
        self.assertEqual(first.stop(signal.SIGKILL)[0], -signal.SIGKILL)

        class Again(Server):
            url = property(lambda _: first.url, lambda *_: None)

        second = Again("-c", "256", "--port", str(first.port))  # the later flag counts
        self.addCleanup(second.stop)
        self.assertEqual(second.complete("Once"), answer)

    def test_keys(self):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
            print("first\n\nsecond", file=keys, flush=True)
            server = Server("-c", "256", "--api-key-file", keys.name)
        self.addCleanup(server.stop)
        body = b'{"prompt": "Once", "n_predict": 1}'
        for status, header in [(200, b"Authorization: Bearer first"), (200, b"X-Api-Key: second"),
                               (401, b"Authorization: Bearer third"), (401, b"Authorization: Bearer "), (401, b"X-Other: first"),
                               (401, b"Authorization: Bearer first second")]:
            with self.subTest(header=header):
                self.assertEqual(exchange(server.port, http(b"/completion", body, b"POST", header))[0], status)
        for status, path in [(200, b"/health"), (401, b"/v1/models"), (401, b"/props"), (401, b"/slots"), (401, b"/metrics")]:
            with self.subTest(path=path):
                self.assertEqual(exchange(server.port, http(path, method=b"GET"))[0], status)


if __name__ == "__main__":
    unittest.main(verbosity=2)
