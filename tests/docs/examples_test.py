"""Runs the documents' examples like a reader would; checks their links and the table of options.

Shell commands and Python blocks of PAGES are run in a folder with model.gguf, which is the default model, and the other files that examples
name. An example that cannot be run is in NOT_RUN with the reason; any other example that fails is a failure.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from programs import HARP, ROOT, SERVER, SMOL, environment, needs_smol
from running_server import Server, free_port

PAGES = ["README.md", "docs/START.md", "docs/PACKAGES.md", "docs/PYTHON.md", "docs/SERVER.md"]
TIMEOUT = 60  # seconds, for one example

# Why an example is not run, by the example's text (without a trailing comment).
BUILDS = "builds"
DOWNLOADS = "downloads"
TESTS = "runs tests or benchmarks for minutes"
NOT_RUN = {
    "./test": TESTS,
    "./run generate -hf REPO -p \"Why is the sky blue?\"": DOWNLOADS,
    "cmake --preset release -DGGML_CUDA=ON": "needs a GPU; builds",
    "cmake --build build/release --target harp_cli harp_server": BUILDS,
    "scripts/fetch llama.cpp": DOWNLOADS,
    "cmake -B build/plain -DHARP_BUILD_TESTS=OFF -DHARP_BUILD_BENCH=OFF": BUILDS,
    "cmake --build build/plain --parallel --target harp_cli harp_server": BUILDS,
    "./run generate -m model.gguf -ngl 99 -p \"Why is the sky blue?\"": "needs a GPU",
    "python3 -m venv venv && . venv/bin/activate": "the environment of the next example",
    "pip install .": BUILDS,
    "packaging/wheel.sh": BUILDS,
    "packaging/deb.sh": BUILDS,
    "pip install build/wheel/harp_cpp-*.whl": "needs the wheel: packaging/try_wheel.sh",
    "sudo apt-get install ./build/deb/harp_*.deb": "needs the package: packaging/try_deb.sh",
    "pip install \".[eval]\"": BUILDS,
    "harp calibrate -m SmolLM2-135M-Instruct.Q4_1.gguf --examples lambada600.jsonl --write-preset preset.json": "takes minutes",
    "lm_eval --model harp --model_args path=model.gguf,threshold=1.5 --tasks lambada_openai --batch_size 8": DOWNLOADS,
    "lm_eval --model local-completions --tasks lambada_openai \\\n"
    "    --model_args model=any,base_url=http://127.0.0.1:8080/v1/completions,num_concurrent=4": DOWNLOADS,
    "harp-eval report results --examples 1000:": "needs a run of more than 1000 examples",
    "harp-eval report results --chosen-on development": "needs a second run, with other examples",
    "cmake --preset release -DGGML_RPC=ON && cmake --build build/release --target ggml-rpc-server": BUILDS,
    "build/release/bin/ggml-rpc-server -H 0.0.0.0 -p 50052": "is not built by default; opens a port to all",
    "pip install . -Ccmake.define.GGML_RPC=ON": BUILDS,
    "harp-eval run -o results -m model.gguf --tasks lambada_openai --llama-args \"--rpc HOST:50052,HOST:50052 -ngl 99\"":
        "needs two other machines",
}

LANGUAGES = {"sh": "sh", "python": "python", "": None, "json": None, "diff": None, "cmake": None, "mermaid": None}
PROGRAMS = {"harp", "harp-server", "harp-eval", "lm_eval", "curl", "pip", "python", "python3", "cmake", "docker", "export"}
IS_SERVER = re.compile(r"(\./run serve|harp serve|harp-server)\b(?!.*--help)")

# `harp` as the examples call it: the program, with limits where an example sets none.
HARP_SCRIPT = """#!/usr/bin/env bash
given=" $* "
bound() { [[ $given == *" $1 "* ]] || set_bounds+=("$@"); }
set_bounds=()
case $1 in
    serve) shift; exec harp-server "$@" ;;
    generate | compare | *' '*) bound -n 8 ;;
    bench) bound -n 2; bound --rounds 1; bound --n-prompts 1; bound --methods vanilla,harp ;;
    score) bound --max-tokens 64 ;;
    calibrate) bound --views last:10; bound --thresholds 1; bound --betas 2; bound --plausibilities 0 ;;
esac
exec "$HARP_PROGRAM" "$@" "${set_bounds[@]}"
"""
RUN_SCRIPT = """#!/usr/bin/env bash
(($# > 0)) || set -- generate -p "What is the capital of France?"
exec harp "$@"
"""


@dataclass(frozen=True)
class Example:
    page: str
    line: int
    language: str  # sh, python
    code: str

    def __str__(self):
        return f"{self.page}:{self.line}: {self.code}"


def cut_comment(line, two_spaces):
    """The line up to an unquoted comment or, with `two_spaces`, up to two spaces before a description."""
    quote = None
    for i, c in enumerate(line):
        if quote:
            quote = None if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c == " " and (line[i + 1:i + 2] == "#" or two_spaces and line[i + 1:i + 2] == " "):
            return line[:i].rstrip()
    return line.rstrip()


def is_whole(command):
    if command.endswith("\\"):
        return False
    return subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).returncode == 0


def is_command(text):
    return text.split(maxsplit=1)[0] in PROGRAMS or text.startswith("./")


def shell_commands(lines, page, two_spaces=False):
    """Commands in (number, text) lines; a command may take several lines. `two_spaces`: lines may have descriptions after two spaces."""
    command, first = "", 0
    for number, text in lines:
        text = text if command else cut_comment(text, two_spaces)
        if not command and (not text.strip() or text.startswith("#") or two_spaces and not is_command(text)):
            continue
        first = first if command else number
        command = f"{command}\n{text}" if command else text
        if is_whole(command):
            yield Example(page, first, "sh", command)
            command = ""
    if command:
        raise AssertionError(f"{page}:{first}: not a whole command: {command}")


def examples(page):
    found, block, language, indented = [], None, "", []

    def end_indented():
        found.extend(shell_commands(indented, page, two_spaces=True))
        indented.clear()

    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        if block is not None:
            if line.strip() != "```":
                block.append((number, line))
                continue
            if language == "sh":
                found.extend(shell_commands(block, page))
            elif language == "python" and block:
                found.append(Example(page, block[0][0], "python", "\n".join(text for _, text in block)))
            else:  # an output together with its command
                commands = [(n, text[2:]) for n, text in block if text.startswith("$ ")]
                found.extend(shell_commands(commands, page))
            block = None
        elif line.startswith("```"):
            end_indented()
            language, block = line[3:].strip(), []
            if language not in LANGUAGES:
                raise AssertionError(f"{page}:{number}: a block in a language that this test does not know: {language}")
        elif line.startswith("    ") and line.strip():
            indented.append((number, line[4:]))
        else:
            end_indented()
    return found


class Documents(unittest.TestCase):
    def test_exceptions_are_examples(self):
        written = {example.code for page in PAGES for example in examples(page)}
        self.assertEqual(sorted(set(NOT_RUN) - written), [], "exceptions that no document has any more")

    def test_links(self):
        pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
        for page in pages:
            for target in sorted(set(re.findall(r"\]\(([^)\s]+)\)", page.read_text()))):
                if "://" in target:
                    continue
                path, _, anchor = target.partition("#")
                with self.subTest(page=str(page.relative_to(ROOT)), target=target):
                    linked = page.parent / path if path else page
                    self.assertTrue(linked.exists())
                    if anchor:
                        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
                        self.assertIn(anchor, [re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings])

    @unittest.skipUnless(os.access(HARP, os.X_OK), f"no {HARP}")
    def test_figure_is_of_the_table(self):
        with tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder) / "drawn.svg"
            subprocess.run([sys.executable, ROOT / "scripts/draw_evaluation.py", drawn], check=True, timeout=TIMEOUT)
            self.assertTrue(drawn.read_bytes() == (ROOT / "docs/images/evaluation.svg").read_bytes(),
                            "docs/EVALUATION.md has another table; run scripts/draw_evaluation.py")

    def test_options(self):
        helped = subprocess.run([HARP, "generate", "--help"], env=environment(), capture_output=True, text=True, check=True)
        page = (ROOT / "docs/OPTIONS.md").read_text()
        for name in sorted(set(re.findall(r"--harp-[a-z-]+", helped.stdout))):
            self.assertRegex(page, rf"`{name}[ `]|`{name.removeprefix('--harp-').replace('-', '_')}`")


@needs_smol
class Examples(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="harp-docs-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.lay_out()
        cls.server = Server("-c", "2048", model=SMOL)
        cls.addClassCleanup(cls.server.stop)
        cls.environment = environment(
            PATH=os.pathsep.join([str(cls.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            HARP_PROGRAM=HARP, HARP_DEFAULT_MODEL=str(SMOL), HARP_EVAL_DATA="data", HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="passive")

    @classmethod
    def lay_out(cls):
        """Creates the files that examples name."""
        (cls.folder / "bin").mkdir()
        (cls.folder / "models").mkdir()
        for name in ("model.gguf", "draft.gguf", "models/model.gguf"):
            (cls.folder / name).symlink_to(SMOL)
        pairs = [("The capital of France is", " Paris"), ("Two and two make", " four"), ("Snow is", " white")] * 13
        (cls.folder / "questions.jsonl").write_text(
            "".join(json.dumps({"context": a, "continuation": b}) + "\n" for a, b in pairs) +
            json.dumps({"context": "Q: Which is a fruit?\nA:", "choices": [" apple", " chair"], "answer": 0}) + "\n")
        (cls.folder / "preset.json").write_text('{"harp": {"threshold": 2}}')
        choices = [{"label": label, "text": text} for label, text in zip("ABCDE", ("sea", "sky", "tree", "road", "shop"))]
        csqa = cls.folder / "data/csqa/dev_rand_split.jsonl"
        csqa.parent.mkdir(parents=True)
        csqa.write_text("".join(json.dumps({"id": str(i), "answerKey": "B", "question": {
            "stem": "Where are clouds?", "choices": choices}}) + "\n" for i in range(2)))
        lambada = cls.folder / "data/lambada/lambada_test.jsonl"
        lambada.parent.mkdir(parents=True)
        lambada.write_text("".join(json.dumps({"text": a + b}) + "\n" for a, b in pairs[:3]))
        for path, text in (("bin/harp", HARP_SCRIPT), ("run", RUN_SCRIPT)):
            (cls.folder / path).write_text(text)
            (cls.folder / path).chmod(0o755)
        (cls.folder / "bin/harp-server").symlink_to(Path(SERVER).resolve())

    def test_each(self):
        for page in PAGES:
            for example in examples(page):
                if example.code in NOT_RUN:
                    continue
                with self.subTest(str(example)):
                    self.skip_what_is_not_installed(example)
                    if example.language == "sh" and IS_SERVER.match(example.code):
                        self.serve(example)
                    else:
                        self.run_example(example)

    def skip_what_is_not_installed(self, example):
        wanted = {"curl"} if example.code.startswith("curl") else set()
        if example.language == "python":
            wanted = set(re.findall(r"^(?:import|from) (\w+)", example.code, re.MULTILINE))
            missing = [name for name in wanted if importlib.util.find_spec(name) is None]
        else:
            wanted |= {example.code.split()[0]} & {"harp-eval", "lm_eval"}
            missing = [name for name in wanted if not shutil.which(name, path=self.environment["PATH"])]
        if missing:
            self.skipTest(f"not installed: {', '.join(missing)}")

    def run_example(self, example):
        code = example.code.replace("127.0.0.1:8080", f"127.0.0.1:{self.server.port}")
        command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[example.language]
        done = subprocess.run([*command, code], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=TIMEOUT, check=False)
        output = done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")
        self.assertEqual(done.returncode, 0, output[-3000:])
        self.assertNotIn('"error":', output)

    def serve(self, example):
        """Starts the example's server on a free port, and waits until it is ready."""
        port = free_port()
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(["bash", "-c", f"exec {example.code} --port {port}"], cwd=self.folder,
                                       env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            ready = False
            while not ready and process.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                        ready = json.load(answer)["status"] == "ok"
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.05)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            code = process.wait(timeout=TIMEOUT)
            log.seek(0)
            self.assertTrue(ready and code == 0, f"exit {code}\n{log.read().decode('utf-8', 'replace')[-3000:]}")


if __name__ == "__main__":
    unittest.main()
