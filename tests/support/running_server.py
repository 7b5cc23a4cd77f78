"""A harp-server that tests start, ask and stop."""

import json
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from programs import SERVER, TINY, environment

START_TIMEOUT = 60  # seconds
EXACT = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # so that rounding, which depends on batch sizes, changes no choice


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running harp-server (or another program with the same interface) on a free port of the loopback device.

    Without a model it is a router, whose models are given by flags.
    """

    def __init__(self, *flags, model=TINY, program=SERVER):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = tempfile.TemporaryFile()
        named = ["-m", str(model)] if model else []
        self.process = subprocess.Popen([program, *named, "--port", str(self.port), *flags], env=environment(),
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + START_TIMEOUT
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start: {self.output()}")
            time.sleep(0.05)

    def is_ready(self):
        try:
            return self.get("/health")["status"] == "ok"
        except (urllib.error.URLError, ConnectionError):
            return False

    def output(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def stream(self, path, body):
        """The chunks of a streamed answer."""
        request = urllib.request.Request(self.url + path, json.dumps({**body, "stream": True}).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            data = [line.removeprefix(b"data: ").strip() for line in answer if line.startswith(b"data: ")]
        return [json.loads(text) for text in data if text != b"[DONE]"]

    def complete(self, prompt, n=48, **more):
        return self.post("/completion", {"prompt": prompt, "n_predict": n, "temperature": 0, **more})["content"]

    def stop(self, how=signal.SIGINT):
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(timeout=30)
        output = self.output()
        self.log.close()
        return code, output


class OneServer:
    """For test cases whose tests all ask one server."""

    flags = []
    model = TINY

    @classmethod
    def setUpClass(cls):
        cls.server = Server("-np", "4", "-c", "2048", *EXACT, *cls.flags, model=cls.model)

    @classmethod
    def tearDownClass(cls):
        code, output = cls.server.stop()
        if code != 0:
            raise AssertionError(f"exit {code}\n{output[-3000:]}")
