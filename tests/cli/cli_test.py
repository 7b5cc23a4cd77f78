#!/usr/bin/env python3
"""Tests of the command line: exit codes, one-line errors, streams, interrupts, and what the output says.

Finds the program through HARP_BINARY, the tiny model through HARP_SHARED_DATA and SmolLM2 through HARP_TEST_MODELS;
tests whose model is absent are skipped.
"""

import itertools
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import xml.dom.minidom
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import HARP, MODELS, SMOL, TINY, environment, needs_smol, needs_tiny

MAMBA = MODELS / "random-mamba.gguf"
LOOKUP = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "5"]

OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130
OPTIONS = ["threshold", "beta", "perturbation", "strength", "reframings", "schedule", "redraw", "scope", "seed"]
TIMEOUT = 60  # seconds; a hang is a failure


class Result:
    def __init__(self, code, out, err):
        self.code = code
        self.out = out.decode("utf-8", "replace")
        self.err = err.decode("utf-8", "replace")

    def __repr__(self):
        return f"exit {self.code}\n--- stdout\n{self.out[-1500:]}\n--- stderr\n{self.err[-1500:]}"


def harp(*args, stdin=b"", env=None, stdout=subprocess.PIPE, cwd=None):
    done = subprocess.run([HARP, *args], input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=TIMEOUT,
                          env=environment(**(env or {})), cwd=cwd, check=False)
    return Result(done.returncode, done.stdout or b"", done.stderr)


def generate(*args, model=TINY, prompt="Once upon a time", **kwargs):
    return harp("generate", "-m", str(model), "-p", prompt, *args, **kwargs)


class Terminal:
    """A program with the chosen streams on a pseudo-terminal and the others in pipes."""

    def __init__(self, args, streams=("stdout",), env=None):
        self.master, slave = pty.openpty()
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        pipes.update({name: slave for name in streams})
        self.process = subprocess.Popen([HARP, *args], env=environment(**(env or {})), start_new_session=True, **pipes)
        os.close(slave)
        self.text = ""

    def _read(self, seconds):
        """One piece of output. False at its end."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: the other end is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def wait_for(self, pattern, start=0):
        """Reads until `pattern` appears after offset `start`. @return the offset of its end"""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            found = re.compile(pattern).search(self.text, start)
            if found:
                return found.end()
            if not self._read(0.5):
                break
        raise AssertionError(f"no {pattern!r} in the terminal's output:\n{self.text[-2000:]}")

    def send(self, data):
        os.write(self.master, data.encode())

    def finish(self):
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end and self._read(0.5):
            if self.process.poll() is not None:
                while self._read(0) and select.select([self.master], [], [], 0)[0]:
                    pass
                break
        rest = [stream.read() if stream else b"" for stream in (self.process.stdout, self.process.stderr)]
        self.process.wait(timeout=TIMEOUT)
        self.close()
        return Result(self.process.returncode, *rest)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        if self.master is not None:
            os.close(self.master)
            self.master = None


class CliTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="harp-cli-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def terminal(self, *args, **kwargs):
        terminal = Terminal(args, **kwargs)
        self.addCleanup(terminal.close)
        return terminal

    def assert_ok(self, result):
        self.assertEqual(result.code, OK, result)
        return result

    def assert_fault(self, result, code, *names, output=False):
        """The exit code, and exactly one line on stderr that names the thing."""
        self.assertEqual(result.code, code, result)
        lines = [line for line in result.err.splitlines() if line.strip()]
        self.assertEqual(len(lines), 1, f"not exactly one line\n{result}")
        for name in names:
            self.assertIn(name.lower(), lines[0].lower(), result)
        self.assertNotIn("\033", result.err)
        if not output:
            self.assertEqual(result.out, "", result)

    def assert_whole_json_lines(self, path):
        data = path.read_bytes()
        self.assertTrue(data.endswith(b"\n"), f"the trace ends within a line: {data[-100:]}")
        return [json.loads(line) for line in data.splitlines()]


class Usage(CliTest):
    def test_no_command_prints_usage(self):
        result = harp()
        self.assertEqual(result.code, USAGE)
        self.assertIn("generate", result.err)

    def test_help_and_version(self):
        self.assertIn("generate", self.assert_ok(harp("--help")).out)
        self.assertRegex(self.assert_ok(harp("--version")).out, r"^harp \d+\.\d+")

    def test_unknown_command_lists_commands(self):
        self.assert_fault(harp("bogus"), USAGE, "bogus", "generate", "chat", "compare", "score", "calibrate", "verify", "info")

    def test_help_of_each_command(self):
        for command in ["generate", "chat", "compare", "score", "calibrate", "info", "verify"]:
            for flag in ["--help", "-h"]:
                with self.subTest(command=command, flag=flag):
                    result = self.assert_ok(harp(command, flag))
                    self.assertIn(f"harp {command}", result.out)
                    self.assertEqual(result.err, "")
                    if command != "verify":  # the recordings fix the options there
                        for option in OPTIONS:
                            self.assertIn(f"--harp-{option}", result.out)
                        self.assertIn("--harp-off", result.out)

    def test_no_model(self):
        for command in ["generate", "chat", "compare", "score", "calibrate", "info"]:
            with self.subTest(command=command):
                self.assert_fault(harp(command), USAGE, "no model")

    def test_unknown_harp_option(self):
        for flag in ["--harp-bta", "--harp-bta=1"]:
            with self.subTest(flag=flag):
                self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", flag), USAGE, "--harp-bta")
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--harp-bta", "0.5"), USAGE, "--harp-bta")

    def test_unknown_other_option(self):
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--frobnicate"), USAGE, "--frobnicate")

    def test_bad_value_of_llama_option(self):
        bad = [("-c", "many"), ("-c", "12x"), ("-c", "-5"), ("-b", "0"), ("--temp", "x"), ("-s", "x"), ("-ctk", "f7")]
        for flag, value in bad:
            with self.subTest(flag=flag, value=value):
                self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", flag, value), USAGE, flag)

    @needs_tiny
    def test_flags_of_llama_by_all_their_names(self):
        for flag in ["-n", "--predict", "--n-predict", "--n_predict"]:
            self.assertEqual(json.loads(self.assert_ok(generate(flag, "3", "--ignore-eos", "--json")).out)["generated"]["tokens"], 3)

    def test_help_of_llama(self):
        self.assertIn("--top-p", self.assert_ok(harp("generate", "--help-llama")).out)

    def test_option_without_value(self):
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--harp-beta"), USAGE, "--harp-beta")
        self.assert_fault(harp("generate", "-m", str(TINY), "-p"), USAGE, "-p")

    def test_harp_options_out_of_range(self):
        bad = {
            "threshold": ["-1", "nan", "two", ""],
            "beta": ["-0.1", "1.1", "nan", "inf", "0.5x"],
            "perturbation": ["noise"],
            "strength": ["-0.1", "1.5", "nan", "inf"],
            "reframings": ["0", "9", "-1", "1.5"],
            "schedule": ["eager"],
            "redraw": ["-1", "4294967296", "x"],
            "scope": ["some"],
            "seed": ["-1", "18446744073709551616", "x"],
        }
        self.assertEqual(sorted(bad), sorted(OPTIONS))
        for name, values in bad.items():
            for value in values:
                with self.subTest(option=name, value=value):
                    result = harp("generate", "-m", str(TINY), "-p", "x", f"--harp-{name}", value)
                    self.assert_fault(result, USAGE, name, value)

    def test_harp_option_from_environment_out_of_range(self):
        result = harp("generate", "-m", str(TINY), "-p", "x", env={"HARP_BETA": "2"})
        self.assert_fault(result, USAGE, "beta", "2")

    def test_flags_of_ours(self):
        self.assert_fault(harp("generate", "-m", str(TINY), "-p", "x", "--format", "prose"), USAGE, "--format")
        self.assert_fault(harp("score", "-m", str(TINY), "-p", "x y z", "--window", "1"), USAGE, "--window")
        self.assert_fault(harp("compare", "-m", str(TINY), "-p", "x", "--harp-off"), USAGE, "--harp-off")


@needs_tiny
class ModelFaults(CliTest):
    def assert_refused(self, path, *names):
        self.assert_fault(harp("generate", "-m", str(path), "-p", "x"), USAGE, str(path), *names)

    def write(self, name, data):
        path = self.folder / name
        path.write_bytes(data)
        return path

    @staticmethod
    def layout(data):
        """Offsets in a GGUF file: the first string value's length, tensor infos, and the tensor data."""
        sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
        n_tensors, n_kv = struct.unpack_from("<QQ", data, 8)
        at, first_string = 24, None

        def string(at):
            return at + 8 + struct.unpack_from("<Q", data, at)[0]

        for _ in range(n_kv):
            at = string(at)
            kind, = struct.unpack_from("<I", data, at)
            at += 4
            if kind == 8:
                first_string = first_string or at
                at = string(at)
            elif kind == 9:
                kind, count = struct.unpack_from("<IQ", data, at)
                at += 12
                for _ in range(count):
                    at = string(at) if kind == 8 else at + sizes[kind]
            else:
                at += sizes[kind]
        infos = at
        for _ in range(n_tensors):
            at = string(at)
            at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 12
        return first_string, infos, (at + 31) // 32 * 32

    def test_missing(self):
        self.assert_refused(self.folder / "nowhere.gguf", "no such file")

    def test_directory(self):
        self.assert_refused(self.folder, "directory")

    def test_not_gguf(self):
        self.assert_refused(self.write("text.gguf", b"this is only text, and a good deal of it\n" * 100), "not a GGUF")
        self.assert_refused(self.write("empty.gguf", b""), "not a GGUF")

    def test_truncated(self):
        data = TINY.read_bytes()
        _, infos, tensors = self.layout(data)
        cuts = {"magic": 4, "header": 14, "key": 28, "metadata": infos // 2, "infos": (infos + tensors) // 2,
                "before_data": tensors, "data": (tensors + len(data)) // 2, "last_byte": len(data) - 1}
        for name, size in cuts.items():
            with self.subTest(cut=name):
                self.assert_refused(self.write(f"{name}.gguf", data[:size]), "cannot be loaded: ")

    def test_hostile(self):
        data = TINY.read_bytes()
        first_string, infos, _ = self.layout(data)
        name_length, = struct.unpack_from("<Q", data, infos)
        dims = infos + 8 + name_length
        huge = [(1 << 64) - 1, 1 << 63, 1 << 62, 1 << 40]
        patches = {f"{place}_{value:x}": (at, struct.pack("<Q", value))
                   for place, at in {"tensors": 8, "pairs": 16, "key_length": 24, "string_length": first_string,
                                     "tensor_name_length": infos, "dim": dims + 4}.items() for value in huge}
        patches["version"] = (4, struct.pack("<I", 0xFFFFFFFF))
        patches["n_dims"] = (dims, struct.pack("<I", 0xFFFFFFFF))
        patches["dims_product"] = (dims + 4, struct.pack("<QQ", 1 << 32, 1 << 32))
        patches["dim_zero"] = (dims + 4, struct.pack("<Q", 0))
        patches["tensor_type"] = (dims + 4 + 16, struct.pack("<I", 0xFFFF))
        patches["tensor_offset"] = (dims + 4 + 16 + 4, struct.pack("<Q", (1 << 64) - 32))
        for name, (at, patch) in patches.items():
            with self.subTest(patch=name):
                hostile = bytearray(data)
                hostile[at:at + len(patch)] = patch
                self.assert_refused(self.write(f"{name}.gguf", hostile), "cannot be loaded: ")

    def test_other_commands_refuse_too(self):
        for command in ["chat", "compare", "score", "calibrate", "info"]:
            with self.subTest(command=command):
                path = self.folder / "nowhere.gguf"
                self.assert_fault(harp(command, "-m", str(path), *([] if command in ("chat", "info") else ["-p", "x y"])),
                                  USAGE, str(path))


@needs_tiny
class PromptFaults(CliTest):
    def test_empty(self):
        for prompt in ["", " \n\t"]:
            with self.subTest(prompt=prompt):
                self.assert_fault(generate(prompt=prompt), USAGE, "prompt", "empty")
        self.assert_fault(harp("generate", "-m", str(TINY), stdin=b""), USAGE, "prompt", "empty")

    def test_longer_than_context(self):
        for command in ["generate", "compare"]:
            with self.subTest(command=command):
                result = harp(command, "-m", str(TINY), "-c", "256", "-p", "Once upon a time " * 200)
                self.assert_fault(result, USAGE, "prompt", "256", "-c")

    def test_invalid_utf8(self):
        for bad, hexadecimal in [(b"\xff", "0xFF"), (b"\xc0\xaf", "0xC0"), (b"\xed\xa0\x80", "0xED"), (b"\xe2\x82", "0xE2")]:
            with self.subTest(bad=bad):
                result = harp("generate", "-m", str(TINY), "-p", os.fsdecode(b"abc" + bad))
                self.assert_fault(result, USAGE, "UTF-8", hexadecimal, "offset 3")
                result = harp("generate", "-m", str(TINY), stdin=b"abc" + bad)
                self.assert_fault(result, USAGE, "UTF-8", hexadecimal, "offset 3")

    def test_prompt_file_missing(self):
        result = harp("generate", "-m", str(TINY), "-f", str(self.folder / "no.txt"))
        self.assertIn(result.code, (FAILURE, USAGE), result)
        self.assert_fault(result, result.code, "no.txt")

    def test_prompt_that_looks_like_a_flag(self):
        for prompt in ["--json", "--help", "-h", "--harp-bta", "-f", "-m", "-hf", "--harp-off=1"]:
            with self.subTest(prompt=prompt):
                data = json.loads(self.assert_ok(generate("-n", "2", "--json", prompt=prompt)).out)
                self.assertGreater(data["prompt"]["tokens"], 0)
                self.assertTrue(data["harp"]["enabled"])

    def test_prompt_sources_agree(self):
        path = self.folder / "prompt.txt"
        path.write_text("Once upon a time")
        common = ["generate", "-m", str(TINY), "-n", "10", "--seed", "3", "--harp-schedule", "lazy"]
        texts = {self.assert_ok(r).out for r in (harp(*common, "-p", "Once upon a time"), harp(*common, "-f", str(path)),
                                                 harp(*common, stdin=b"Once upon a time"))}
        self.assertEqual(len(texts), 1, texts)

    def test_no_tokens_asked_for(self):
        result = self.assert_ok(generate("-n", "0"))
        self.assertEqual(result.out, "")
        data = json.loads(self.assert_ok(generate("-n", "0", "--json")).out)
        self.assertEqual((data["text"], data["tokens"], data["stop_reason"]), ("", [], "length"))

    def test_bad_grammar(self):
        self.assert_fault(generate("--grammar", "root ::= ("), USAGE, "grammar")
        self.assert_fault(generate("--json-schema", "{"), USAGE, "json-schema")

    def test_score_of_too_little(self):
        self.assert_fault(harp("score", "-m", str(TINY), "-p", "x y z", "--window", "100000"), USAGE, "window")


@needs_tiny
class OutputFaults(CliTest):
    def test_trace_to_full_disk(self):
        result = generate("-n", "20", "--trace", "/dev/full")
        self.assert_fault(result, FAILURE, "/dev/full", "No space left", output=True)

    def test_trace_to_unwritable_place(self):
        for path in [self.folder, self.folder / "missing/trace.jsonl", "/proc/trace.jsonl"]:
            with self.subTest(path=path):
                self.assert_fault(generate("-n", "2", "--trace", str(path)), FAILURE, str(path))

    def test_stdout_full(self):
        for args in [["generate", "-p", "Once", "-n", "20"], ["generate", "-p", "Once", "-n", "4", "--json"],
                     ["compare", "-p", "Once", "-n", "4"], ["score", "-p", "Once upon a time"],
                     ["score", "-p", "Once upon a time", "--sweep", "beta=0,1"], ["calibrate", "-p", "Once upon a time"], ["info"], ["info", "--json"]]:
            with self.subTest(args=args), open("/dev/full", "wb") as full:
                result = harp(*args, "-m", str(TINY), stdout=full)
                self.assert_fault(result, FAILURE, "standard output", "No space left")

    def test_help_to_full_stdout(self):
        for args in [["--help"], ["generate", "--help"], ["--version"]]:
            with self.subTest(args=args), open("/dev/full", "wb") as full:
                self.assertEqual(harp(*args, stdout=full).code, FAILURE)

    def test_broken_pipe(self):
        process = subprocess.Popen([HARP, "generate", "-m", str(TINY), "-p", "Once", "-n", "400", "--ignore-eos"], env=environment(),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
        process.stderr.close()
        self.assert_fault(Result(process.wait(timeout=TIMEOUT), b"", error), FAILURE, "standard output", "Broken pipe")


@needs_smol
class Interrupts(CliTest):
    def assert_interrupted(self, terminal):
        result = terminal.finish()
        self.assertEqual(result.code, INTERRUPTED, f"{result}\n--- terminal\n{terminal.text[-1500:]}")
        lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\033\[K", "", terminal.text)) if line.strip()]
        lines = [line for line in lines if not re.match(r"loading the model|prompt: \d", line)]
        self.assertEqual(len(lines), 1, terminal.text[-1500:])
        self.assertIn("interrupted", lines[0])

    def test_while_loading(self):
        terminal = self.terminal("generate", "-m", str(SMOL), "-p", "x", "--load-mode", "none", "--trace", str(self.folder / "t"), streams=["stderr"])
        terminal.wait_for("loading the model")
        terminal.process.send_signal(signal.SIGINT)
        self.assert_interrupted(terminal)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_while_reading_a_long_prompt(self):
        trace = self.folder / "trace.jsonl"
        terminal = self.terminal("generate", "-m", str(SMOL), "-c", "8192", "-b", "32", "-p", "The cat sat on the mat. " * 700,
                                 "--trace", str(trace), streams=["stderr"])
        terminal.wait_for("prompt: ")
        terminal.process.send_signal(signal.SIGINT)
        self.assert_interrupted(terminal)
        self.assertEqual(trace.read_bytes(), b"")

    def test_within_one_large_batch(self):
        terminal = self.terminal("generate", "-m", str(SMOL), "-c", "8192", "-b", "8192", "-p", "The cat sat on the mat. " * 700,
                                 streams=["stderr"])
        terminal.wait_for(r"loading the model")
        time.sleep(2)  # well past loading, well before the end of some 5000 tokens twice
        terminal.process.send_signal(signal.SIGINT)
        self.assert_interrupted(terminal)

    def test_while_generating(self):
        trace = self.folder / "trace.jsonl"
        for schedule in ["lazy", "fused"]:
            with self.subTest(schedule=schedule):
                process = subprocess.Popen([HARP, "generate", "-m", str(SMOL), "-p", "Tell a long story.", "-n", "3000", "--ignore-eos",
                                            "--harp-schedule", schedule, "--trace", str(trace)], env=environment(), bufsize=0,
                                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                text = process.stdout.read(1)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=TIMEOUT)
                result = Result(process.returncode, text + out, err)
                self.assertEqual(result.code, INTERRUPTED, result)
                self.assertIn("interrupted", result.err)
                self.assertTrue(result.out.endswith("\n"), result)
                lines = self.assert_whole_json_lines(trace)
                self.assertEqual("".join(line["text"] for line in lines).rstrip("\n"), result.out.rstrip("\n"))
                self.assertEqual([p.name for p in self.folder.iterdir()], [trace.name])

    def test_score_and_compare(self):
        for args in [["score", "-c", "64", "-p", "The cat sat on the mat. " * 500], ["compare", "-p", "Tell a story.", "-n", "2000"]]:
            with self.subTest(command=args[0]):
                terminal = self.terminal(*args, "-m", str(SMOL), streams=["stderr"])
                terminal.wait_for(r"s left|vanilla: \d+ tokens")
                terminal.process.send_signal(signal.SIGINT)
                result = terminal.finish()
                self.assertEqual(result.code, INTERRUPTED, result)
                self.assertIn("interrupted", terminal.text)


@needs_tiny
class Generating(CliTest):
    def test_same_seed_same_output(self):
        runs = [json.loads(self.assert_ok(generate("-n", "60", "--seed", "7", "--harp-schedule", "lazy", "--json")).out) for _ in range(2)]
        self.assertGreater(runs[0]["statistics"]["hesitations"], 0)
        for key in ["text", "tokens", "stop_reason", "sampler_seed"]:
            self.assertEqual(runs[0][key], runs[1][key])
        other = self.assert_ok(generate("-n", "60", "--seed", "8", "--harp-schedule", "lazy")).out
        self.assertNotEqual(other.strip(), runs[0]["text"].strip())

    def test_off_is_infinite_threshold(self):
        off, never = (self.assert_ok(generate("-n", "80", "--seed", "5", *flags)).out
                      for flags in (["--harp-off"], ["--harp-threshold", "inf"]))
        self.assertEqual(off, never)
        self.assertNotEqual(off, self.assert_ok(generate("-n", "80", "--seed", "5", "--harp-threshold", "0.5")).out)

    def test_json(self):
        data = json.loads(self.assert_ok(generate("-n", "20", "--seed", "2", "--harp-threshold", "0.5", "--json")).out)
        for key in ["text", "tokens", "stop_reason", "prompt", "generated", "harp", "statistics", "sampler_seed", "model", "build"]:
            self.assertIn(key, data)
        self.assertEqual(data["text"], "".join(token["text"] for token in data["tokens"]))
        self.assertEqual(data["generated"]["tokens"], len(data["tokens"]))
        self.assertEqual(data["sampler_seed"], 2)
        self.assertEqual(data["statistics"]["hesitations"], sum(token["hesitated"] for token in data["tokens"]))
        self.assertEqual(sorted(data["harp"]), sorted(OPTIONS + ["enabled"]))
        self.assertEqual(data["harp"]["threshold"], 0.5)
        self.assertEqual(data["model"]["file"], TINY.name)
        self.assertRegex(data["model"]["fingerprint"], r"^[0-9a-f]{64}$")
        off = json.loads(self.assert_ok(generate("-n", "4", "--harp-off", "--json")).out)
        self.assertEqual(off["harp"], {"enabled": False})

    def test_sampler_seed_reported_repeats_the_run(self):
        first = json.loads(self.assert_ok(generate("-n", "40", "--harp-schedule", "lazy", "--json")).out)
        again = json.loads(self.assert_ok(generate("-n", "40", "--harp-schedule", "lazy", "--json",
                                                   "--seed", str(first["sampler_seed"]))).out)
        self.assertEqual(first["text"], again["text"])

    def test_trace(self):
        trace = self.folder / "trace.jsonl"
        for schedule in ["lazy", "fused", "auto"]:
            with self.subTest(schedule=schedule):
                result = self.assert_ok(generate("-n", "60", "--seed", "4", "--harp-threshold", "0.8", "--harp-schedule", schedule,
                                                 "--trace", str(trace)))
                lines = self.assert_whole_json_lines(trace)
                self.assertEqual("".join(line["text"] for line in lines).strip(), result.out.strip())
                hesitated = [line for line in lines if line["hesitated"]]
                self.assertTrue(0 < len(hesitated) < len(lines))
                self.assertEqual([line["position"] for line in lines], list(range(lines[0]["position"], lines[0]["position"] + len(lines))))
                n_shared = 0
                for line in lines:
                    self.assertEqual(line["entropy"] > 0.8, line["hesitated"], line)
                    tops = {name: {c["id"]: c["logit"] for c in line.get(name, [])} for name in ("vanilla", "reframed", "mixed")}
                    self.assertEqual(len(tops["vanilla"]), 8)
                    self.assertEqual(len(tops["mixed"]), 8)
                    self.assertEqual([c["logit"] for c in line["mixed"]], sorted(tops["mixed"].values(), reverse=True))
                    if not line["hesitated"]:
                        self.assertEqual(line["vanilla"], line["mixed"])
                        continue
                    self.assertEqual(len(tops["reframed"]), 8)
                    for token in tops["mixed"].keys() & tops["vanilla"].keys() & tops["reframed"].keys():
                        n_shared += 1
                        self.assertAlmostEqual(tops["mixed"][token], 0.5 * tops["vanilla"][token] + 0.5 * tops["reframed"][token], places=4)
                self.assertGreater(n_shared, len(hesitated))

    def test_environment_option(self):
        from_environment = json.loads(self.assert_ok(generate("-n", "2", "--json", env={"HARP_THRESHOLD": "2.5"})).out)
        self.assertEqual(from_environment["harp"]["threshold"], 2.5)
        flag_wins = json.loads(self.assert_ok(generate("-n", "2", "--json", "--harp-threshold", "3", env={"HARP_THRESHOLD": "2.5"})).out)
        self.assertEqual(flag_wins["harp"]["threshold"], 3)
        never = json.loads(self.assert_ok(generate("-n", "2", "--json", env={"HARP_THRESHOLD": "inf"})).out)
        self.assertEqual(never["harp"]["threshold"], "inf")

    def test_default_model_from_environment(self):
        self.assert_ok(harp("generate", "-p", "Once", "-n", "2", env={"HARP_DEFAULT_MODEL": str(TINY)}))

    def test_context_full(self):
        data = json.loads(self.assert_ok(generate("-c", "256", "-n", "1000", "--ignore-eos", "--json")).out)
        self.assertEqual(data["stop_reason"], "context_full")


@needs_tiny
class Colour(CliTest):
    FLAGS = ["-m", str(TINY), "-p", "Once upon a time", "-n", "30", "--seed", "1", "--harp-threshold", "0.5"]

    def on_terminal(self, command="generate", **env):
        terminal = self.terminal(command, *self.FLAGS, env=env)
        result = terminal.finish()
        self.assert_ok(result)
        self.assertNotIn("\033", result.err)  # stderr is a pipe
        return terminal.text

    def test_none_in_pipes(self):
        for command in ["generate", "compare"]:
            result = self.assert_ok(harp(command, *self.FLAGS))
            self.assertNotIn("\033", result.out + result.err)

    def test_on_terminal(self):
        for command in ["generate", "compare"]:
            with self.subTest(command=command):
                text = self.on_terminal(command)
                self.assertIn("\033[38;5;", text)
                self.assertEqual(text.count("\033[0m") > 0, True)
                self.assertGreater(text.rfind("\033[0m"), text.rfind("\033[38;5;"))  # left as it was

    def test_same_text_on_terminal(self):
        flags = {"HARP_SCHEDULE": "lazy"}
        plain = re.sub(r"\033\[[0-9;]*m", "", self.on_terminal(**flags)).replace("\r\n", "\n")
        self.assertEqual(plain.strip(), self.assert_ok(harp("generate", *self.FLAGS, env=flags)).out.strip())

    def test_refused(self):
        for env in [{"NO_COLOR": "1"}, {"TERM": "dumb"}]:
            for command in ["generate", "compare"]:
                with self.subTest(env=env, command=command):
                    self.assertNotIn("\033", self.on_terminal(command, **env))


@needs_tiny
class OtherCommands(CliTest):
    TEXT = "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park. " * 4

    def score(self, *flags):
        return json.loads(self.assert_ok(harp("score", "-m", str(TINY), "-p", self.TEXT, "--json", *flags)).out)

    def test_score(self):
        data = self.score("--harp-threshold", "0.5")
        self.assertTrue(data["complete"])
        self.assertGreater(data["tokens"], 50)
        self.assertTrue(0 < data["hesitations"] <= data["tokens"])
        self.assertAlmostEqual(data["difference"]["mean"], data["harp"]["mean"] - data["vanilla"]["mean"], places=6)
        for name in ["harp", "vanilla", "difference"]:
            self.assertGreater(data[name]["standard_error"], 0)
        self.assertEqual(data["vanilla"], self.score("--harp-threshold", "0.5")["vanilla"])

    def test_score_without_hesitation_is_vanilla(self):
        never = self.score("--harp-threshold", "inf")
        self.assertEqual((never["hesitations"], never["difference"]["mean"]), (0, 0))
        off = self.score("--harp-off")
        self.assertNotIn("harp", off)
        self.assertAlmostEqual(off["vanilla"]["mean"], never["vanilla"]["mean"], places=5)

    def test_score_limits(self):
        self.assertLessEqual(self.score("--max-tokens", "20")["tokens"], 20)
        self.assertEqual(self.score("--window", "16")["window"], 16)

    def test_score_of_one_token_has_no_error_bar(self):
        data = self.score("--max-tokens", "2")
        self.assertEqual((data["tokens"], data["vanilla"]["standard_error"]), (1, None))

    def test_score_text(self):
        result = self.assert_ok(harp("score", "-m", str(TINY), stdin=self.TEXT.encode()))
        for word in ["vanilla", "HARP", "difference", "perplexity"]:
            self.assertIn(word, result.out)

    def test_compare(self):
        data = json.loads(self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once upon a time", "-n", "40", "--seed", "3",
                                              "--harp-threshold", "0.5", "--json")).out)
        for side in ["vanilla", "harp"]:
            self.assertEqual(data[side]["text"], "".join(token["text"] for token in data[side]["tokens"]))
        self.assertFalse(any(token["hesitated"] for token in data["vanilla"]["tokens"]))
        ids = [[token["id"] for token in data[side]["tokens"]] for side in ("vanilla", "harp")]
        part = data["first_difference"]
        self.assertEqual(part, next((i for i, (a, b) in enumerate(zip(*ids)) if a != b), None))
        self.assertGreater(data["cost_ratio"], 0)
        same = json.loads(self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once upon a time", "-n", "40", "--seed", "3",
                                              "--harp-threshold", "inf", "--json")).out)
        self.assertIsNone(same["first_difference"])

    def test_compare_formats_as_generate_does(self):
        flags = ["-m", str(SMOL), "-p", "Hello.", "-n", "1", "-sys", "You answer in French.", "--harp-off", "--json"]
        if not SMOL.is_file():
            self.skipTest(f"no {SMOL}")
        n_prompt = json.loads(self.assert_ok(harp("generate", *flags)).out)["prompt"]["tokens"]
        flags.remove("--harp-off")
        data = json.loads(self.assert_ok(harp("compare", *flags)).out)
        self.assertEqual(data["prompt"], {"tokens": n_prompt, "format": "chat"})

    def test_compare_text(self):
        result = self.assert_ok(harp("compare", "-m", str(TINY), "-p", "Once", "-n", "10"))
        self.assertIn("vanilla", result.out)
        self.assertIn("tokens/s", result.out)

    def test_info(self):
        data = json.loads(self.assert_ok(harp("info", "-m", str(TINY), "--json", "--harp-beta", "0.25")).out)
        self.assertEqual(data["harp"]["supported"], True)
        self.assertEqual(data["harp"]["options"]["beta"], 0.25)
        self.assertEqual(data["model"]["vocabulary"], 512)
        self.assertIn("self-check", self.assert_ok(harp("info", "-m", str(TINY))).out)


@needs_tiny
class Beams(CliTest):
    def beams(self, *flags):
        return json.loads(self.assert_ok(generate("-n", "24", "--beams", "3", "--n-best", "3", "--json", *flags)).out)

    def test_json(self):
        data = self.beams("--harp-threshold", "0.5")
        scores = [h["score"] for h in data["hypotheses"]]
        self.assertEqual(len(scores), 3)
        self.assertEqual(scores, sorted(scores, reverse=True))
        for h in data["hypotheses"]:
            length = len(h["tokens"])
            self.assertAlmostEqual(h["score"], h["log_probability"] / ((5 + length) / 6) ** 1.2, places=6)
            self.assertEqual(h["text"], "".join(token["text"] for token in h["tokens"]))
        self.assertEqual(data["text"], data["hypotheses"][0]["text"])
        self.assertGreater(data["statistics"]["hesitations"], 0)
        self.assertEqual(data["beam_search"]["beams"], 3)

    def test_schedules_agree_and_off_is_another(self):
        texts = {self.beams("--harp-schedule", schedule)["text"] for schedule in ["lazy", "fused", "auto"]}
        self.assertEqual(len(texts), 1)
        off = self.beams("--harp-off")
        self.assertEqual(off["harp"], {"enabled": False})
        self.assertNotIn(off["text"], texts)
        self.assertEqual(off["hypotheses"], self.beams("--harp-threshold", "inf")["hypotheses"])

    @needs_smol
    def test_goes_on_past_the_end_where_asked(self):
        flags = ["-n", "40", "--beams", "2", "--n-best", "2", "--json", "--ignore-eos"]
        for hypothesis in json.loads(self.assert_ok(generate(*flags, model=SMOL, prompt="Say yes.")).out)["hypotheses"]:
            self.assertEqual((hypothesis["finished"], len(hypothesis["tokens"])), (False, 40))

    def test_text(self):
        result = self.assert_ok(generate("-n", "12", "--beams", "2", "--n-best", "2"))
        self.assertEqual(len(re.findall(r"(?m)^\[[12]\] score -", result.out)), 2, result)
        self.assertIn("length penalty 1.2", result.err)
        self.assertNotIn("[1]", self.assert_ok(generate("-n", "12", "--beams", "2")).out)

    def test_faults(self):
        for flags, names in {
            ("--beams", "0"): ["--beams", "0", "256"],
            ("--beams", "300"): ["--beams", "300"],
            ("--beams", "3", "--length-penalty", "-1"): ["--length-penalty", "-1"],
            ("--beams", "3", "--beam-candidates", "0"): ["--beam-candidates"],
            ("--beams", "3", "--early-stopping", "soon"): ["--early-stopping", "soon", "heuristic"],
            ("--beams", "3", "--n-best", "4"): ["--n-best", "4", "3"],
            ("--beams", "200", "--harp-reframings", "2"): ["256"],
            ("--beams", "3", "--grammar", 'root ::= "a"'): ["--grammar"],
            ("--beams", "3", "--trace", "t.jsonl"): ["--trace"],
            ("--beams", "3", *LOOKUP): ["--beams", "--spec-type"],
            ("--beams", "3", "-n", "0"): ["-n"],
            ("--beams", "3", "-r", "END"): ["--reverse-prompt"],
            ("--beams", "3", "-c", "256", "-n", "200"): ["-c", "256"],
        }.items():
            with self.subTest(flags=flags):
                self.assert_fault(generate(*flags), USAGE, *names)


@needs_tiny
class Speculation(CliTest):
    def same(self, *flags, speculate=LOOKUP, n="120"):
        """The run with speculation, whose tokens must be those of the run without.

        Rows that are decoded together add up in another order than one alone. A float32 cache without flash attention keeps
        that small, but an entropy that falls on the threshold itself may then be judged either way; the texts are compared
        up to there.
        """
        common = ["-n", n, "--json", "-ctk", "f32", "-ctv", "f32", "-fa", "off", *flags]
        with_draft = json.loads(self.assert_ok(generate(*common, *speculate)).out)
        without = json.loads(self.assert_ok(generate(*common)).out)
        self.assertIsNone(without["speculation"])
        same = list(itertools.takewhile(lambda pair: pair[0]["hesitated"] == pair[1]["hesitated"],
                                        zip(with_draft["tokens"], without["tokens"])))
        self.assertEqual([a["id"] for a, _ in same], [b["id"] for _, b in same])
        if len(same) < max(len(with_draft["tokens"]), len(without["tokens"])):
            for run in (with_draft, without):  # IndexError where one is merely shorter
                self.assertAlmostEqual(run["tokens"][len(same)]["entropy"], run["harp"]["threshold"], delta=1e-3)
        self.assertGreater(with_draft["speculation"]["drafted"], 0)
        return with_draft["speculation"]

    def test_lookup_gives_the_same_tokens(self):
        for schedule in ["lazy", "fused", "auto"]:
            for redraw in ["0", "3"]:
                with self.subTest(schedule=schedule, redraw=redraw):
                    self.same("--temp", "0", "--harp-schedule", schedule, "--harp-redraw", redraw)
        self.same("--temp", "0", "--harp-scope", "generated")
        self.same("--temp", "0", "--harp-reframings", "2")
        self.assertGreater(self.same("--temp", "0", "--harp-off")["accepted"], 0)

    def test_sampling_gives_the_same_tokens(self):
        # one random number a token, whatever was drafted: the same seed gives the same text, hence the same distribution
        for seed in range(8):
            self.same("--temp", "0.8", "--seed", str(seed), "--harp-schedule", "lazy")

    def test_draft_model(self):
        draft = ["-md", str(TINY), "--spec-draft-n-max", "4"]
        speculation = self.same("--temp", "0", "--harp-off", speculate=draft)
        self.assertGreater(speculation["accepted"], 0.9 * speculation["drafted"])  # it is the target itself
        # with HARP the draft is right where the target does not hesitate, and often else: it has to follow rejections
        speculation = self.same("--temp", "0", speculate=draft)
        self.assertGreater(speculation["accepted"], 0.3 * speculation["drafted"])
        self.assertGreaterEqual(speculation["accepted"] + speculation["batches"], 118)  # of 120: a draft in every batch
        self.same("--temp", "0.8", "--seed", "3", speculate=draft)

    def test_to_the_end_of_the_context(self):
        for flags in (["-c", "256", "--ignore-eos"], ["-c", "256", "--ignore-eos", "--harp-off"], ["-b", "3"]):
            self.same("--temp", "0", *flags, n="400")

    def test_trace_has_each_token_once(self):
        trace = self.folder / "t.jsonl"
        result = self.assert_ok(generate("-n", "80", "--temp", "0", "--harp-threshold", "0.8", "--trace", str(trace), *LOOKUP))
        lines = self.assert_whole_json_lines(trace)
        self.assertEqual("".join(line["text"] for line in lines).strip(), result.out.strip())
        for line in lines:
            self.assertEqual(line["entropy"] > 0.8, line["hesitated"], line)
            self.assertEqual(line["token"], line["mixed"][0]["id"])
            self.assertEqual("reframed" in line, line["hesitated"])

    def test_chat_over_several_turns(self):
        turns = "Once upon a time.\nOnce upon a time there was.\n/clear\nOnce upon a time.\n".encode()
        flags = ["chat", "-m", str(TINY), "-n", "60", "--temp", "0", "-c", "512", "-ctk", "f32", "-ctv", "f32"]
        self.assertEqual(self.assert_ok(harp(*flags, *LOOKUP, stdin=turns)).out, self.assert_ok(harp(*flags, stdin=turns)).out)

    def test_summary(self):
        self.assertRegex(self.assert_ok(generate("-n", "60", "--temp", "0", *LOOKUP)).err, r"speculation: \d+ of \d+ drafted")

    def test_faults(self):
        self.assert_fault(generate("-md", str(self.folder / "no.gguf")), USAGE, "draft model", "no such file")
        self.assert_fault(generate("--spec-type", "magic"), USAGE, "--spec-type", "magic")
        for command in ["score", "compare"]:
            self.assert_fault(harp(command, "-m", str(TINY), "-p", "x y z", *LOOKUP), USAGE, "--spec-type")
        if SMOL.is_file():
            self.assert_fault(generate("-md", str(SMOL)), USAGE, "draft model", SMOL.name, "vocab")
        if MAMBA.is_file():
            self.assert_fault(generate(*LOOKUP, model=MAMBA), FAILURE, "recurrent")


@needs_tiny
class Pause(CliTest):
    def test_appends_tokens_to_the_prompt(self):
        runs = [json.loads(self.assert_ok(generate("-n", "4", "--temp", "0", "--json", *flags)).out)
                for flags in ([], ["--pause", "7"], ["--pause", "2", "--pause-text", "and so"])]
        n = [run["prompt"]["tokens"] for run in runs]
        self.assertGreater(n[1], n[0])
        self.assertEqual((n[1] - n[0]) % 7, 0)  # a pause text may be several tokens
        self.assertEqual((n[2] - n[0]) % 2, 0)
        self.assertEqual(len({run["text"] for run in runs}), 3)

    def test_faults(self):
        self.assert_fault(generate("--pause", "-1"), USAGE, "--pause")
        self.assert_fault(generate("--pause", "3", "--pause-text", ""), USAGE, "--pause-text")


@needs_tiny
class Bench(CliTest):
    def bench(self, *flags):
        return json.loads(self.assert_ok(harp("bench", "-m", str(TINY), "-n", "12", "--rounds", "2", "--json", *flags, *(
            [] if "--n-prompts" in flags else ["--n-prompts", "2"]))).out)

    def test_json(self):
        data = self.bench("-md", str(TINY))
        methods = {method["name"]: method for method in data["methods"]}
        self.assertEqual(list(methods), ["vanilla", "harp", "harp-lazy", "harp-fused", "beam", "harp-beam", "lookup", "harp-lookup", "draft", "harp-draft"])
        for method in methods.values():
            for figure in ["steps_per_second", "step_time_relative_to_vanilla", "total_time_relative_to_vanilla", "first_token_seconds"]:
                spread = method[figure]
                self.assertTrue(0 < spread["min"] <= spread["median"] <= spread["max"], method)
        self.assertEqual(methods["vanilla"]["step_time_relative_to_vanilla"]["median"], 1)
        self.assertNotIn("hesitation_share", methods["vanilla"])
        self.assertTrue(0 < methods["harp"]["hesitation_share"] <= 1)
        self.assertEqual(methods["harp"]["cache_bytes"], 2 * methods["vanilla"]["cache_bytes"])
        for name in ["lookup", "harp-lookup", "draft", "harp-draft"]:
            self.assertEqual(methods[name]["same_tokens"]["prompts"], 2, methods[name])
        self.assertGreater(methods["draft"]["acceptance"], 0.9)
        self.assertEqual((data["rounds"], data["prompts"], data["tokens_each"], data["complete"]), (2, 2, 12, True))
        self.assertEqual(data["harp"]["threshold"], 1)

    def test_all_methods_and_their_references(self):
        data = self.bench("--methods", "harp-lookup,harp-redraw1,nucleus,harp-nucleus,pause,stock")
        self.assertEqual([m["name"] for m in data["methods"]], ["vanilla", "harp", "harp-redraw1", "nucleus", "harp-nucleus", "harp-lookup", "pause",
                                                                  "stock"])

    def test_outputs(self):
        plot = self.folder / "plot.svg"
        flags = ["bench", "-m", str(TINY), "-n", "4", "--rounds", "1", "--n-prompts", "1", "--methods", "harp"]
        result = self.assert_ok(harp(*flags, "--plot", str(plot), "--baseline", "true"))
        for text in ["vanilla", "harp", "x vanilla", "baseline `true`"]:
            self.assertIn(text, result.out)
        self.assertNotIn("\033", result.out + result.err)
        svg = xml.dom.minidom.parse(str(plot))
        self.assertEqual(svg.documentElement.tagName, "svg")
        markdown = self.assert_ok(harp(*flags, "--markdown")).out
        self.assertIn("| method |", markdown)
        self.assertIn("harp: threshold=1", markdown)

    def test_prompts_from_a_file(self):
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text('{"question": "Once?"}\n\nOnce upon a time\n{"text": "The dog"}\n')
        self.assertEqual(self.bench("--prompts", str(prompts), "--methods", "vanilla", "--n-prompts", "9")["prompts"], 3)

    def test_faults(self):
        bad = self.folder / "bad.jsonl"
        bad.write_text('{"answer": 1}\n')
        empty = self.folder / "empty.txt"
        empty.write_text("\n")
        for flags, names in {
            ("--methods", "magic"): ["--methods", "magic", "harp-beam"],
            ("--methods", "draft"): ["--methods", "draft", "-md"],
            ("--rounds", "0"): ["--rounds", "0"],
            ("-n", "1"): ["-n", "1"],
            ("--prompts", str(self.folder / "no")): ["prompts", "no"],
            ("--prompts", str(bad)): [str(bad), "line 1", "question"],
            ("--prompts", str(empty)): ["empty"],
            ("--harp-off",): ["--harp-off"],
            ("--baseline", "exit 3", "--rounds", "1", "--methods", "vanilla"): ["--baseline", "exit 3", "3"],
            ("-c", "64", "-n", "300"): ["-c", "256"],
        }.items():
            with self.subTest(flags=flags):
                self.assert_fault(harp("bench", "-m", str(TINY), *flags), USAGE, *names)
        self.assert_fault(harp("bench", "-m", str(TINY), "-n", "4", "--rounds", "1", "--methods", "vanilla", "--plot", "/dev/full"),
                          FAILURE, "/dev/full", output=True)

    def test_interrupt_reports_the_rounds_that_are_complete(self):
        terminal = self.terminal("bench", "-m", str(TINY), "-n", "60", "--rounds", "1000", "--methods", "harp", "--json", streams=["stderr"])
        terminal.wait_for(r"round [3-9] of")
        terminal.process.send_signal(signal.SIGINT)
        result = terminal.finish()
        self.assertEqual(result.code, INTERRUPTED, result)
        data = json.loads(result.out)
        self.assertFalse(data["complete"])
        self.assertTrue(2 <= data["rounds"] < 1000)


STORY = "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park. One day a big dog came. "


@needs_tiny
class Sweep(CliTest):
    def score(self, *flags):
        return json.loads(self.assert_ok(harp("score", "-m", str(TINY), "-p", STORY * 3, "--json", *flags)).out)

    def assert_same_mean(self, a, b):
        for key in ["mean", "standard_error"]:
            self.assertAlmostEqual(a[key], b[key], delta=1e-5)

    def test_bad_flags(self):
        bad = [
            (["--sweep", "threshold"], ["--sweep", "threshold", "NAME=VALUE"]),
            (["--sweep", "=1"], ["--sweep", "threshold, beta"]),
            (["--sweep", "thres=1"], ["--sweep", "thres", "threshold, beta"]),
            (["--sweep", "schedule=lazy"], ["--sweep", "schedule", "threshold, beta"]),
            (["--sweep", "threshold=1,,2"], ["--sweep", "threshold", "''", ">= 0"]),
            (["--sweep", "threshold=1,-2"], ["--sweep", "threshold", "-2", ">= 0"]),
            (["--sweep", "beta=0,2"], ["--sweep", "beta", "2", "0..1"]),
            (["--sweep", "perturbation=dropout,uniform", "--sweep", "strength=0"], ["--sweep", "strength", "uniform > 0"]),
            (["--sweep", "beta=0", "--sweep", "beta=1"], ["--sweep", "beta", "twice"]),
            (["--sweep", "beta=0", "--harp-beta", "0.5"], ["--sweep", "--harp-beta"]),
            (["--sweep", "seed=" + ",".join(map(str, range(67))), "--sweep", "beta=0,0.5,1"], ["--sweep", "201", "1..200"]),
            (["--sweep", "beta=0", "--harp-off"], ["--harp-off", "sweep"]),
        ]
        for flags, names in bad:
            with self.subTest(flags=flags):  # before the model is loaded: there is none
                self.assert_fault(harp("score", "-m", "nowhere.gguf", "-p", "x y z", *flags), USAGE, *names)

    def test_each_row_is_what_score_says(self):
        sweeps = [
            {"threshold": [0, 1], "beta": [0, 0.5, 0.75, 1], "strength": [0.1, 0.3]},
            {"reframings": [1, 2], "redraw": [0, 1], "threshold": ["inf", 0.5]},
            {"seed": [0, 7], "scope": ["all", "generated"]},
            {"perturbation": ["uniform", "gaussian"], "strength": [0.5, 5]},
        ]
        for axes in sweeps:
            flags = [flag for name, values in axes.items() for flag in ("--sweep", f"{name}={','.join(map(str, values))}")]
            data = self.score("--harp-schedule", "lazy", *flags)
            self.assertTrue(data["complete"])
            expected = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
            self.assertEqual([row["options"] for row in data["combinations"]], expected)
            for row in data["combinations"]:
                with self.subTest(options=row["options"]):
                    flags = [flag for name, value in row["options"].items() for flag in (f"--harp-{name}", str(value))]
                    alone = self.score("--harp-schedule", "lazy", *flags)
                    self.assertEqual((data["tokens"], row["hesitations"]), (alone["tokens"], alone["hesitations"]))
                    self.assertAlmostEqual(row["hesitation_share"], alone["hesitations"] / alone["tokens"])
                    self.assert_same_mean(row["harp"], alone["harp"])
                    self.assert_same_mean(row["difference"], alone["difference"])
                    self.assert_same_mean(data["vanilla"], alone["vanilla"])

    def test_betas_share_a_pass_and_vanilla_costs_none(self):
        rows = self.score("--sweep", "threshold=0.5,inf", "--sweep", "beta=0.25,0.5,1")["combinations"]
        self.assertEqual(rows[0]["seconds"], rows[1]["seconds"])
        self.assertGreater(rows[0]["seconds"], 0)
        for row in rows[2:]:
            self.assertEqual((row["seconds"], row["difference"]["mean"]), (0, 0))

    def test_text(self):
        result = self.assert_ok(harp("score", "-m", str(TINY), "-p", STORY, "--sweep", "threshold=0,1", "--sweep", "perturbation=gaussian"))
        lines = result.out.splitlines()
        self.assertEqual(lines[0].split()[:3], ["threshold", "perturbation", "hesitates"])
        self.assertEqual([line.split()[0] for line in lines[1:4]], ["vanilla", "0", "1"])
        self.assertEqual(len({line.rfind(".") for line in lines[1:4]}), 1, result)  # columns

    def test_interrupted_keeps_the_rows_that_are_complete(self):
        if not SMOL.is_file():
            self.skipTest(f"no {SMOL}")
        for form in [["--json"], []]:
            with self.subTest(form=form):
                terminal = self.terminal("score", "-m", str(SMOL), "-p", STORY * 8, "-c", "64", "--harp-threshold", "0",
                                         "--sweep", "strength=0.1,0.2,0.3,0.4", *form, streams=["stderr"])
                terminal.wait_for(r"of (\d+) tokens")
                total = 4 * int(re.search(r"of (\d+) tokens", terminal.text)[1])
                terminal.wait_for(rf"of {total} tokens \([3-9]\d %\)")  # past the first of four passes
                terminal.process.send_signal(signal.SIGINT)
                result = terminal.finish()
                self.assertEqual(result.code, INTERRUPTED, result)
                self.assertRegex(terminal.text, "interrupted: only [123] of 4")
                if form:
                    data = json.loads(result.out)
                    self.assertFalse(data["complete"])
                    self.assertTrue(1 <= len(data["combinations"]) < 4, result)
                else:
                    self.assertRegex(result.out, "interrupted: only [123] of 4")


@needs_tiny
class Calibrate(CliTest):
    def calibrate(self, *flags, text=STORY * 3):
        return json.loads(self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", text, "--json", *flags)).out)

    def test_bad_flags(self):
        bad = [
            (["--target-share", "1.5"], ["--target-share", "1.5", "0..1"]),
            (["--target-share", "nan"], ["--target-share", "nan", "0..1"]),
            (["--target-share", "x"], ["--target-share", "x", "0..1"]),
            (["--target-cost", "0.9"], ["--target-cost", "0.9", "1..100"]),
            (["--target-cost", "inf"], ["--target-cost", "inf", "1..100"]),
            (["--strengths", "0.1,x"], ["--strengths", "strength", "'x'", "dropout 0..1"]),
            (["--strengths", "0.1,1.5"], ["--strengths", "strength", "1.5", "dropout 0..1"]),
            (["--betas", "0.5,-1"], ["--betas", "beta", "-1", "0..1"]),
            (["--strengths", "0.1," * 100 + "0.1"], ["--strengths", "202", "1..200"]),
            (["--generate", "0"], ["--generate", "0"]),
            (["--generate", "9", "--betas", "0.5"], ["--generate", "--betas"]),
            (["--generate", "9", "--strengths", "0.5"], ["--generate", "--strengths"]),
            (["--generate", "9", "--window", "64"], ["--generate", "--window"]),
            (["--format", "raw"], ["--generate", "--format"]),
            (["--harp-threshold", "2"], ["--harp-threshold"]),
            (["--harp-strength", "0.1"], ["--harp-strength", "--strengths"]),
            (["--harp-beta", "0.1"], ["--harp-beta", "--betas"]),
            (["--harp-off"], ["--harp-off"]),
        ]
        for flags, names in bad:
            with self.subTest(flags=flags):
                self.assert_fault(harp("calibrate", "-m", "nowhere.gguf", "-p", "x y z", *flags), USAGE, *names)
        self.assert_fault(harp("calibrate", "-m", str(TINY), "-p", STORY, "--window", "100000"), USAGE, "window", "2..")

    def test_json(self):
        data = self.calibrate("--target-share", "0.3", "--strengths", "0.1,0.3", "--betas", "0,0.5,1", "--harp-seed", "7")
        self.assertEqual((data["source"], data["target"], data["prompt"]), ("given text", {"share": 0.3}, None))
        bins = data["entropy"]["histogram"]
        self.assertEqual(sum(b["count"] for b in bins), data["steps"])
        self.assertAlmostEqual(sum(b["share"] for b in bins), 1)
        self.assertEqual([b["begin"] for b in bins[1:]], [b["end"] for b in bins[:-1]])
        quantiles = list(data["entropy"]["quantiles"].values())
        self.assertEqual(quantiles, sorted(quantiles))
        self.assertLessEqual(abs(data["share"] - 0.3), 0.5 / data["steps"])
        expected = [{"strength": s, "beta": b} for s in (0.1, 0.3) for b in (0, 0.5, 1)]
        self.assertEqual([row["options"] for row in data["grid"]], expected)
        for row in data["grid"]:
            self.assertAlmostEqual(row["hesitation_share"], data["share"])
        self.assertEqual(data["recommended"]["seed"], 7)
        self.assertEqual(data["recommended"]["threshold"], data["threshold"])
        best = min(data["grid"], key=lambda row: row["difference"]["mean"])
        self.assertEqual(data["helps"], any(r["difference"]["mean"] + 2 * r["difference"]["standard_error"] < 0 for r in data["grid"]))
        if not data["helps"]:
            self.assertEqual(sorted(data["recommended"]), ["seed", "threshold"])
        self.assertLessEqual(best["difference"]["mean"], 0)  # beta 1 is there
        for key in ["model", "build", "window", "seconds", "vanilla", "harp_options"]:
            self.assertIn(key, data)

    def test_grid_agrees_with_score(self):
        for extra in [[], ["--harp-reframings", "2", "--harp-perturbation", "gaussian"], ["--harp-redraw", "3"]]:
            flags = ["--harp-schedule", "lazy", "--window", "50", "--max-tokens", "120", *extra]
            data = self.calibrate("--target-share", "0.4", "--strengths", "0.1,0.4", "--betas", "0.25,0.75", *flags)
            for row in data["grid"]:
                with self.subTest(extra=extra, options=row["options"]):
                    alone = json.loads(self.assert_ok(harp(
                        "score", "-m", str(TINY), "-p", STORY * 3, "--json", *flags, "--harp-threshold", str(data["threshold"]),
                        "--harp-strength", str(row["options"]["strength"]), "--harp-beta", str(row["options"]["beta"]))).out)
                    self.assertEqual((data["steps"], row["hesitations"]), (alone["tokens"], alone["hesitations"]))
                    for key in ["harp", "difference"]:
                        for figure in ["mean", "standard_error"]:
                            self.assertAlmostEqual(row[key][figure], alone[key][figure], delta=1e-5)
                    self.assertAlmostEqual(data["vanilla"]["mean"], alone["vanilla"]["mean"], delta=1e-5)

    def test_shares_at_the_ends(self):
        never = self.calibrate("--target-share", "0")
        self.assertEqual((never["threshold"], never["share"], never["grid"]), ("inf", 0, None))
        always = self.calibrate("--target-share", "1", "--no-grid")
        self.assertEqual((always["share"], always["grid"], always["helps"]), (1, None, None))

    def test_generated_answer(self):
        flags = ["--seed", "3", "--temp", "0.8"]
        data = self.calibrate("--generate", "60", "--ignore-eos", "--target-share", "0.25", *flags, text="Once upon a time")
        self.assertEqual((data["source"], data["steps"], data["grid"], data["vanilla"]), ("generated answer", 60, None, None))
        answer = json.loads(self.assert_ok(generate("-n", "60", "--ignore-eos", "--harp-off", "--json", *flags)).out)
        entropies = [token["entropy"] for token in answer["tokens"]]
        self.assertAlmostEqual(data["entropy"]["mean"], sum(entropies) / 60, places=4)
        self.assertEqual(sum(h > data["threshold"] for h in entropies), round(data["share"] * 60))
        self.assertEqual(data["share"], 0.25)

    def test_budget(self):
        data = self.calibrate("--target-cost", "100", "--target-share", "0.3", "--no-grid")  # more than any batch of two costs
        self.assertEqual((data["target"]["share"], data["target"]["cost"]), (0.3, 100))
        self.assertGreater(data["target"]["predicted_cost"], 0)
        self.assertEqual([batch["rows"] for batch in data["target"]["batches"]], [1, 2, 4, 8, 16, 32])
        self.assertEqual(self.calibrate("--target-cost", "100", "--no-grid")["target"]["share"], 1)

    def test_text_ends_with_a_command_that_works(self):
        for flags in [["--betas", "0.5"], ["--no-grid", "--harp-redraw", "2"], ["--generate", "30", "--seed", "1"]]:
            with self.subTest(flags=flags):
                result = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", STORY, *flags))
                self.assertNotIn("\033", result.out + result.err)
                self.assertIn("generated" if "--generate" in flags else "given text", result.out)
                self.assertEqual(result.out.count("◄ threshold"), 1)
                self.assertLessEqual(max(len(line) for line in result.out.splitlines() if "█" in line), 80)
                command = shlex.split(result.out.splitlines()[-1])
                self.assertEqual(command[:2], ["harp", "generate"])
                self.assert_ok(harp(*command[1:], "-p", "Once", "-n", "3"))

    def test_says_whether_it_helps(self):
        for text, helps in {"zq xv kj wq pf gh zz xk qj vb " * 4: True, STORY: False}.items():  # noise loses by the model's certainty
            with self.subTest(text=text):
                flags = ["--target-share", "0.9", "--strengths", "0.6", "--betas", "0.5,0.75"]
                data = self.calibrate(*flags, text=text)
                self.assertEqual(data["helps"], helps)
                result = self.assert_ok(harp("calibrate", "-m", str(TINY), "-p", text, *flags))
                if helps:
                    best = min(data["grid"], key=lambda row: row["difference"]["mean"])
                    self.assertEqual(data["recommended"], {"threshold": data["threshold"], "strength": 0.6,
                                                           **({"beta": 0.75} if best["options"]["beta"] == 0.75 else {})})
                    self.assertIn("--harp-strength 0.6", result.out.splitlines()[-1])
                    self.assertIn("best of 2 tries", result.out)
                else:
                    self.assertEqual(list(data["recommended"]), ["threshold"])
                    self.assertIn("None of these 2", result.out)

    def test_model_path_is_quoted(self):
        path = self.folder / "a model's $path.gguf"
        path.symlink_to(TINY)
        result = self.assert_ok(harp("calibrate", "-m", str(path), "-p", STORY, "--no-grid"))
        self.assertEqual(shlex.split(result.out.splitlines()[-1])[3], str(path))

    def test_interrupt(self):
        if not SMOL.is_file():
            self.skipTest(f"no {SMOL}")
        cases = {r"\d\d %\)": [],  # reading the text
                 r"of %d tokens \([3-9]\d": ["--strengths", "0.1,0.2,0.3"],  # in the grid
                 r"answering: \d\d": ["--generate", "3000", "--ignore-eos"]}
        for pattern, flags in cases.items():
            with self.subTest(flags=flags):
                terminal = self.terminal("calibrate", "-m", str(SMOL), "-p", STORY * 8, "-c", "64" if "--generate" not in flags else "4096",
                                         "--json", *flags, streams=["stderr"])
                if "%d" in pattern:
                    terminal.wait_for(r"of \d+ tokens")
                    pattern %= 3 * int(re.search(r"of (\d+) tokens", terminal.text)[1])
                terminal.wait_for(pattern)
                terminal.process.send_signal(signal.SIGINT)
                result = terminal.finish()
                self.assertEqual((result.code, result.out), (INTERRUPTED, ""), result)
                self.assertIn("interrupted", terminal.text)


@needs_smol
class Talking(CliTest):
    def test_two_turns_and_commands(self):
        lines = ["My name is Ada.", "/options", "/set threshold 2", "/set threshold -1", "/set bta 1", "/set", "What is my name?", "",
                 "/clear", "/help", "Hello.", "/exit", "never read"]
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "8", "--seed", "1", stdin="\n".join(lines).encode()))
        self.assertNotIn("\033", result.out + result.err)
        self.assertNotIn("> ", result.out)
        self.assertEqual(len(re.findall(r"^\[\d+ tokens", result.err, re.M)), 3, result)
        places = [result.err.find(text) for text in ("threshold=1 ", "threshold=2 ", "forgotten", "/set NAME VALUE")]
        self.assertNotIn(-1, places[:3], result)
        self.assertEqual(places[:3], sorted(places[:3]), result)
        self.assertRegex(result.err, r"(?m)^.*threshold.*-1.*$")
        self.assertRegex(result.err, r"(?m)^.*bta.*$")
        self.assertIn("/set NAME VALUE", result.err)
        self.assertEqual(len(result.out.strip().split("\n\n")[0]) > 0, True)

    def test_off(self):
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", "--harp-off", stdin=b"/options\n/set beta 1\nHello.\n"))
        self.assertIn("off", result.err)
        self.assertIn("--harp-off", result.err)

    def test_invalid_utf8_line(self):
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", stdin=b"a\xffb\nHello.\n"))
        self.assertIn("not valid UTF-8", result.err)
        self.assertIn("[4 tokens", result.err)

    def test_too_long_a_line_does_not_end_it(self):
        stdin = "The cat sat. " * 300 + "\n/clear\nHello.\n"
        result = self.assert_ok(harp("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", "-c", "256", stdin=stdin.encode()))
        self.assertIn("/clear", result.err)
        self.assertIn("[4 tokens", result.err)

    def test_stdout_full(self):
        with open("/dev/full", "wb") as full:
            result = harp("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", stdin=b"Hello.\nHello.\n", stdout=full)
        self.assertEqual(result.code, FAILURE, result)
        self.assertIn("standard output", result.err)

    def test_interrupt_stops_the_answer_only(self):
        terminal = self.terminal("chat", "-m", str(SMOL), "-n", "3000", "--ignore-eos", streams=["stdin", "stdout", "stderr"])
        at = terminal.wait_for("> ")
        terminal.send("Tell a very long story.\n")
        at = terminal.wait_for(r"story\.\r\n(.|\n){20}", at)
        terminal.process.send_signal(signal.SIGINT)
        at = terminal.wait_for(r"stopped(.|\n)*> ", at)
        terminal.process.send_signal(signal.SIGINT)  # at the prompt: a new prompt
        at = terminal.wait_for("> ", at)
        terminal.send("/options\n")
        at = terminal.wait_for("threshold=1", at)
        terminal.send("Another one.\n")
        at = terminal.wait_for(r"one\.\r\n(.|\n){20}", at)
        terminal.process.send_signal(signal.SIGINT)
        at = terminal.wait_for(r"stopped(.|\n)*> ", at)
        terminal.send("\x04")
        self.assertEqual(terminal.finish().code, OK, terminal.text[-1500:])

    def test_interrupt_while_reading_the_line(self):
        terminal = self.terminal("chat", "-m", str(SMOL), "-n", "4", "--ignore-eos", "-c", "8192", "-b", "32", streams=["stdin", "stdout", "stderr"])
        at = terminal.wait_for("> ")
        terminal.send("The cat sat on the mat. " * 160 + "\n")  # a terminal's line holds 4095 bytes
        at = terminal.wait_for("reading: ", at)
        terminal.process.send_signal(signal.SIGINT)
        at = terminal.wait_for("> ", at)
        terminal.send("Hello.\n")
        at = terminal.wait_for(r"\[4 tokens(.|\n)*> ", at)
        terminal.send("/exit\n")
        self.assertEqual(terminal.finish().code, OK, terminal.text[-1500:])


@needs_smol
class Constraints(CliTest):
    def test_grammar(self):
        for schedule in ["lazy", "fused"]:
            for seed in ["1", "2"]:
                result = self.assert_ok(generate("--grammar", 'root ::= "yes" | "no"', "--seed", seed, "-n", "20", "--harp-threshold", "0",
                                                 "--harp-schedule", schedule, model=SMOL, prompt="Is the sky green?"))
                self.assertIn(result.out.strip(), ("yes", "no"))

    def test_json_schema(self):
        schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
                  "required": ["name", "age"], "additionalProperties": False}
        result = self.assert_ok(generate("--json-schema", json.dumps(schema), "-n", "100", "--seed", "1", "--harp-threshold", "0", "--json",
                                         model=SMOL, prompt="Describe a person."))
        data = json.loads(result.out)
        self.assertGreater(data["statistics"]["hesitations"], 0)
        person = json.loads(data["text"])
        self.assertEqual(sorted(person), ["age", "name"])
        self.assertTrue(0 <= person["age"] <= 99)


if __name__ == "__main__":
    unittest.main(verbosity=2)
