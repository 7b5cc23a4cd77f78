#!/usr/bin/env python3
"""Starting and ending harp-server: flags, models, the router, signals, sockets.

Finds the programs through HARP_SERVER_BINARY and HARP_BINARY, the tiny model through HARP_SHARED_DATA and SmolLM2 through
HARP_TEST_MODELS; tests whose model is missing are skipped.
"""

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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import HARP, MODELS, ROOT, SERVER, TINY, environment, needs_tiny
from running_server import EXACT, Server
from server_answers import generate
from tiny_command import PROMPTS

T5 = MODELS / "random-t5.gguf"
BERT = MODELS / "random-bert.gguf"


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


if __name__ == "__main__":
    unittest.main(verbosity=2)
