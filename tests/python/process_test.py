#!/usr/bin/env python3
"""The package's surroundings in its process: forks after a model has computed, locales with a decimal comma."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import harp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import HARP, TINY, environment, needs_tiny
from running_server import EXACT, Server

PROMPT = "Once upon a time"
OPTIONS = harp.HarpOptions(threshold=0.5)


def load():
    return harp.Model(TINY, n_threads=2)


def ask(session):
    stream = session.generate(PROMPT, max_tokens=8)
    for _ in stream:
        pass
    return stream.answer.text


def in_child(call, seconds=120):
    """The result of `call` in a forked process, which is ended if it hangs."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        try:
            os.write(writer, call().encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    return said if status == 0 else f"ended with {status}"


def fresh():
    return ask(harp.Session(Forks.model, OPTIONS, n_ctx=256))


def job(_):
    return fresh()


@needs_tiny
class Forks(unittest.TestCase):
    """Children of a process that has computed with two threads give the same answer, or an error at once."""

    @classmethod
    def setUpClass(cls):
        cls.model = Forks.model = load()
        cls.session = harp.Session(cls.model, OPTIONS, n_ctx=256)
        cls.right = ask(cls.session)

    def test_a_child_computes(self):
        self.assertEqual(in_child(fresh), self.right)
        self.assertEqual(in_child(lambda: ask(self.session)), self.right)
        self.assertEqual(in_child(lambda: ask(harp.Session(load(), OPTIONS, n_ctx=256))), self.right)
        self.assertEqual(in_child(lambda: in_child(fresh)), self.right)
        self.assertEqual(fresh(), self.right)  # and the parent still does too

    def test_a_thread_forks(self):
        said = []
        for call in (lambda: said.append(in_child(fresh)), lambda: said.extend([fresh(), in_child(fresh)])):
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        self.assertEqual(said, [self.right] * 3)

    def test_forked_while_another_thread_computes(self):
        busy, done = harp.Session(self.model, None, n_ctx=2048), threading.Event()

        def work():
            while not done.is_set():
                busy.score([([1], list(range(3, 403)))])

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.2)
        try:
            self.assertEqual([in_child(fresh) for _ in range(3)], [self.right] * 3)
            self.assertIn(in_child(lambda: ask(busy))[:9], ("HarpError", self.right[:9]))
        finally:
            done.set()
            thread.join()

    def test_pools(self):
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            self.assertEqual(pool.map_async(job, range(4)).get(300), [self.right] * 4)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            self.assertEqual([one.result(300) for one in [pool.submit(job, i) for i in range(2)]], [self.right] * 2)

    def test_a_child_that_ends_as_programs_do(self):
        """gunicorn's workers exit by sys.exit(), so that destructors run."""
        code = ("import harp, os, sys; model = harp.Model(sys.argv[1], n_threads=2)\n"
                "def ask(): return [t.id for t in harp.Session(model, n_ctx=256).generate('Once', max_tokens=4)]\n"
                "right = ask(); child = os.fork()\n"
                "if child == 0: sys.exit(0 if ask() == right else 3)\n"
                "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))")
        done = subprocess.run([sys.executable, "-c", code, TINY], timeout=300, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_logs_of_a_child(self):
        """llama.cpp's logger has a thread too."""
        self.assertEqual(in_child(lambda: str(harp.Model(TINY, llama_args=["--log-timestamps", "--log-colors", "off"]).n_vocab)), "512")


@needs_tiny
class Ends(unittest.TestCase):
    def test_a_daemon_thread_has_a_session_when_the_process_ends(self):
        """Web servers have such threads. What is left there is no leak to report."""
        code = ("import harp, sys, threading; begun = threading.Event()\n"
                "def ask(model, session): begun.set(); threading.Event().wait()\n"
                "model = harp.Model(sys.argv[1], n_threads=1); session = harp.Session(model, n_ctx=256)\n"
                "threading.Thread(target=ask, args=(model, session), daemon=True).start(); begun.wait()")
        done = subprocess.run([sys.executable, "-c", code, TINY], timeout=300, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_daemon_thread_computes_when_the_process_ends(self):
        """Python unwinds the stack of a thread that asks for its lock then."""
        for call in ("list(session.generate('Once', max_tokens=200))", "session.score([('Once upon a', ' time')] * 50)",
                     "session.beam_search('Once', beams=1, max_tokens=50)", "session.forward([1] * 100); session.truncate(0)"):
            code = ("import harp, sys, threading; begun = threading.Event()\n"
                    "def ask(session):\n"
                    f"    while True: {call}; begun.set()\n"
                    "session = harp.Session(harp.Model(sys.argv[1], n_threads=1), n_ctx=256)\n"
                    "threading.Thread(target=ask, args=(session,), daemon=True).start(); begun.wait()")
            done = subprocess.run([sys.executable, "-c", code, TINY], timeout=300, capture_output=True, text=True, check=False,
                                  env={**os.environ, "GGML_NO_BACKTRACE": "1"})
            with self.subTest(call=call):
                self.assertEqual((done.returncode, done.stderr), (0, ""))


def make_locale(folder):
    """A locale with a decimal comma in a folder for LOCPATH; skips the test if it cannot be made."""
    try:
        subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", f"{folder}/de_DE.UTF-8"], capture_output=True, check=False)
    except OSError:
        pass
    if not Path(folder, "de_DE.UTF-8").is_dir():
        raise unittest.SkipTest("no localedef, or no locale de_DE to make")


@needs_tiny
class Locales(unittest.TestCase):
    """Numbers are the same in a locale with a decimal comma."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        make_locale(folder.name)
        cls.german = {"LOCPATH": folder.name, "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}

    FLAGS = [*EXACT, "--rope-freq-scale", "0.5"]

    def test_the_package(self):
        code = """
import locale, sys, harp
path, when, *flags = sys.argv[1:]
def german():
    locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    assert locale.str(0.5) == "0,5"
if when == "before": german()
template = "{{ 1.5 * 3 }} {% for m in messages %}{{ m.content }}{% endfor %}{{ 2.25 }}"
model = harp.Model(path, n_threads=1, llama_args=[*flags, "--chat-template", template])
if when == "between": german()
session = harp.Session(model, harp.HarpOptions(threshold=1.5, strength=0.05, schedule="lazy"), n_ctx=256)
if when == "after": german()
print(session.forward(model.tokenize("Once upon a time there was a little dog"), all=True).entropies.sum().hex())
sampling = harp.Sampling(temperature=0.7, top_p=0.9, min_p=0.05, repeat_penalty=1.1, seed=3, grammar='root ::= [a-zA-Z .,]{1,40}')
print([token.id for token in session.generate("Once upon", max_tokens=16, sampling=sampling)])
print(model.apply_chat_template([{"role": "user", "content": "Hi"}]))
print(harp.HarpOptions(threshold=1.5)._texts(), model.info["parameters"])
"""
        def said(when):
            done = subprocess.run([sys.executable, "-c", code, TINY, when, *self.FLAGS], env=environment(**self.german),
                                  capture_output=True, text=True, timeout=300, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

        right = said("never")
        self.assertIn("4.5 Hi2.25", right)
        for when in ("before", "between", "after"):
            self.assertEqual(said(when), right, when)

    def test_the_command(self):
        arguments = [HARP, "generate", "-m", TINY, "-p", "Once upon a time", "-n", "16", "--json", "--harp-threshold", "1.5",
                     "--harp-schedule", "lazy", *self.FLAGS, "--temp", "0.7", "--top-p", "0.9", "--seed", "3"]
        said = [subprocess.run(arguments, env=environment(**more), capture_output=True, text=True, timeout=300, check=True).stdout
                for more in ({"LC_ALL": "C"}, self.german)]
        texts = [[line for line in one.splitlines() if "entropy" in line or '"text"' in line or '"threshold"' in line] for one in said]
        self.assertEqual(texts[0], texts[1])
        self.assertTrue(texts[0])

    def test_the_server(self):
        def said(more):
            before = dict(os.environ)
            os.environ.update(more)
            try:
                server = Server(*EXACT, "--rope-freq-scale", "0.5", "--harp-threshold", "1.5", "--harp-schedule", "lazy")
            finally:
                os.environ.clear()
                os.environ.update(before)
            try:
                body = {"prompt": "Once upon", "n_predict": 16, "temperature": 0.7, "top_p": 0.9, "seed": 3, "n_probs": 2}
                answer = server.post("/completion", body)
                return answer["content"], answer["completion_probabilities"]
            finally:
                server.stop()

        self.assertEqual(said({"LC_ALL": "C"}), said(self.german))


if __name__ == "__main__":
    unittest.main(verbosity=2)
