#!/usr/bin/env python3
"""The evaluation's tasks: lm-eval's own prompts from local files, errors that name a line.

Tests that need lm-eval or the shared data are skipped if it is missing.
"""

import contextlib
import csv
import gzip
import importlib.util
import io
import json
import logging
import os
import re
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
sys.path.insert(0, str(ROOT / "python/harp/evaluation"))  # imports only `tasks`: the package around it needs the compiled engine
from programs import SHARED

import tasks
from tasks import PROTOCOLS, TASKS

LM_EVAL = all(importlib.util.find_spec(name) for name in ("lm_eval", "datasets", "rouge_score"))
needs_lm_eval = unittest.skipUnless(LM_EVAL, "no lm-eval")
HUMANEVAL = ROOT / ".deps/data"  # has the file that scripts/fetch downloads
needs_humaneval = unittest.skipUnless((HUMANEVAL / "human_eval/HumanEval.jsonl.gz").is_file(), f"no HumanEval in {HUMANEVAL}")
PAPERS = [name for name, task in TASKS.items() if not task.runs_code]  # tasks whose files are in the shared data
needs_data = unittest.skipUnless((SHARED / "gsm8k/test.jsonl").is_file(), f"no data in {SHARED}")

if LM_EVAL:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    from datasets import disable_progress_bars
    from lm_eval import simple_evaluate
    from lm_eval import tasks as lm_eval_tasks
    from lm_eval.api.task import ConfigurableTask
    from tasks import answers, summaries
    from tasks.data import HUB

    disable_progress_bars()

HUB_FILE = {  # lm-eval's definition of each task, in its tasks folder
    "commonsense_qa": "commonsense_qa/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "cnn_dailymail": "cnn_dailymail/cnn_dailymail.yaml",
}


def load(*arguments, **more):
    with quiet():
        return tasks.load(*arguments, data=more.pop("data", SHARED), **more)


@contextlib.contextmanager
def quiet():
    """Suppresses lm-eval's log, progress bars and prints."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def hub_task(file, splits):
    """lm-eval's own task, with these splits instead of what it would fetch from the hub."""
    def download(task, *_, **__):
        task.dataset = splits

    path = Path(lm_eval_tasks.__file__).parent / file
    with quiet(), mock.patch.object(ConfigurableTask, "download", download):
        [task] = lm_eval_tasks.TaskManager(include_defaults=False).load(str(path))["tasks"].values()
    return task


def requests(task, limit, seed=1234, **more):
    task.set_fewshot_seed(seed)
    with quiet():
        task.build_all_requests(limit=limit, **more)
    return [(instance.request_type, instance.arguments) for instance in task.instances]


def chat(messages, add_generation_prompt=True):
    return json.dumps(messages) + str(add_generation_prompt)


@needs_lm_eval
@needs_data
class SameAsLmEval(unittest.TestCase):
    """Protocol lm-eval: requests, targets and marks are those of the installed package's definition."""

    def assert_same(self, ours, hub, limit=20):
        for chat_options in ({}, dict(apply_chat_template=True, fewshot_as_multiturn=True, chat_template=chat)):
            self.assertEqual(requests(ours, limit, **chat_options), requests(hub, limit, **chat_options))
        for _, doc in hub.doc_iterator(limit=limit):
            for said in ("doc_to_text", "doc_to_target") + ("doc_to_choice",) * bool(hub.config.doc_to_choice):
                self.assertEqual(getattr(ours, said)(doc), getattr(hub, said)(doc))
        for key in ("output_type", "num_fewshot", "filter_list", "repeats", "target_delimiter", "fewshot_delimiter",
                    "should_decontaminate", "doc_to_decontamination_query", "generation_kwargs"):
            self.assertEqual(ours.get_config(key), hub.get_config(key), key)
        for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
            if not callable(hub.get_config(key)):
                self.assertEqual(ours.get_config(key), hub.get_config(key), key)
        local = [metric for metric in hub.config.metric_list if not metric["metric"].startswith("bertscore")]
        self.assertEqual(ours.config.metric_list, local)

    def test_same_as_the_definition_for_the_hub(self):
        for name, file in HUB_FILE.items():
            with self.subTest(name):
                ours = load(name, "lm-eval")
                splits = ours.dataset
                if name == "cnn_dailymail":  # the hub's summaries have no Penn Treebank spacing
                    splits = {"test": ours.test_docs()}
                elif name == "commonsense_qa":
                    splits = {**splits, "train": splits["validation"]}
                self.assert_same(ours, hub_task(file, splits))

    def test_few_shot_examples_of_gsm8k_depend_on_the_seed(self):
        task = load("gsm8k", "lm-eval", limit=1)
        first = requests(task, 1)
        self.assertEqual(first[0][1][0].count("Question: "), 6)
        self.assertNotEqual(requests(task, 1, seed=1), first)

    def test_mmlu_pro_asks_each_category_as_its_own_task(self):
        examples = (SHARED / "mmlu_pro/validation.jsonl").read_text().splitlines(keepends=True)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "mmlu_pro").mkdir()
            (Path(folder) / "mmlu_pro/validation.jsonl").write_text("".join(examples))
            # Interleaved: the categories must not disturb each other.
            questions = [json.loads(line) for start in range(5) for line in examples[start::5]]
            (Path(folder) / "mmlu_pro/test_first300.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in questions))
            ours = load("mmlu_pro", "lm-eval", data=folder)
        for options in ({}, dict(apply_chat_template=True, fewshot_as_multiturn=True, chat_template=chat)):
            asked = requests(ours, None, **options)
            categories = [doc["category"] for doc in questions]
            self.assertEqual(len(set(categories)), 14)
            for category in set(categories):
                hub = hub_task(f"mmlu_pro/mmlu_pro_{category.replace(' ', '_')}.yaml", ours.dataset)
                here = [request for request, its in zip(asked, categories, strict=True) if its == category]
                self.assertEqual(here, requests(hub, None, **options), category)
        self.assertEqual(ours.config.filter_list, hub.config.filter_list)
        self.assertEqual(ours.config.metric_list, hub.config.metric_list)

    def test_mmlu_pro_of_the_shared_questions(self):
        ours = load("mmlu_pro", "lm-eval")
        self.assertEqual({doc["category"] for doc in ours.eval_docs}, {"business"})
        self.assert_same(ours, hub_task("mmlu_pro/mmlu_pro_business.yaml", ours.dataset))

    def test_rouge_is_that_of_lm_eval(self):
        with quiet():
            from lm_eval.tasks.cnn_dailymail import utils
        doc = {"highlights": "The dogs didn't bark (twice).\nNobody  heard them, Bob's neighbours said."}
        for summary in ("Dogs were not heard barking twice.", "Nothing.", "", doc["highlights"]):
            with quiet():
                theirs = utils.process_results(doc, [summary])
            ours = summaries.process_results(doc, [summary])
            self.assertEqual(ours, {key: theirs[key] for key in ours})


@needs_lm_eval
@needs_data
class Runs(unittest.TestCase):
    def test_lm_eval_runs_each_task(self):
        manager = lm_eval_tasks.TaskManager(include_defaults=False)  # otherwise simple_evaluate reads all 10,000 definitions
        loaded = [load(name, protocol) for name in PAPERS for protocol in PROTOCOLS]
        with quiet():
            done = simple_evaluate(model="dummy", tasks=loaded, task_manager=manager, limit=5, bootstrap_iters=0)
        for name in PAPERS:
            task = TASKS[name]
            for protocol in PROTOCOLS:
                with self.subTest(name, protocol=protocol):
                    key, counts = task.lm_eval_name[protocol], task.filter[protocol]
                    values = [sample[task.metric] for sample in done["samples"][key] if sample["filter"] == counts]
                    self.assertEqual(len(values), 5)
                    self.assertTrue(all(value in (0, 1) if task.binary else 0 <= value <= 1 for value in values), values)
                    self.assertAlmostEqual(done["results"][key][f"{task.metric},{counts}"], sum(values) / 5)

    @needs_humaneval
    def test_humaneval(self):
        """Prompts of both protocols; lm-eval's own definition cannot be loaded without the hub."""
        try:
            loaded = {protocol: load("humaneval", protocol, data=HUMANEVAL, run_generated_code=True) for protocol in PROTOCOLS}
        except tasks.programs.CannotRun as refused:
            self.skipTest(str(refused))
        own = (Path(lm_eval_tasks.__file__).parent / "humaneval/humaneval.yaml").read_text()
        ours = (Path(tasks.__file__).parent / "humaneval.yaml").read_text()
        for part in ("doc_to_text", "generation_kwargs", "num_fewshot", "repeats"):
            said = [re.search(rf"(?m)^{part}:.*(?:\n[ ]+.*)*", text)[0] for text in (own, ours)]
            self.assertEqual(said[0], said[1])
        for protocol, task in loaded.items():
            [(kind, (prompt, _)), *_] = requests(task, 2)
            self.assertEqual(kind, "generate_until")
            self.assertIn("def has_close_elements(", prompt)
            doc = task.eval_docs[0]
            answer = doc["canonical_solution"]
            if protocol == "generative":
                answer = "Here it is.\n```python\n" + doc["prompt"] + answer + "```"
            self.assertEqual(task.process_results(doc, [answer]), {"pass@1": 1, "answered": 1})
        manager = lm_eval_tasks.TaskManager(include_defaults=False)
        with quiet():
            done = simple_evaluate(model="dummy", tasks=[loaded["generative"]], task_manager=manager, limit=2, bootstrap_iters=0,
                                   confirm_run_unsafe_code=True)
        self.assertEqual(done["results"]["harp_humaneval_generative"]["pass@1,none"], 0)
        with quiet(), self.assertRaisesRegex(ValueError, "unsafe"):
            simple_evaluate(model="dummy", tasks=[loaded["generative"]], task_manager=manager, limit=2, bootstrap_iters=0)

    def test_generative_prompts(self):
        said = {"commonsense_qa": "\n\nQuestion: A revolving door is convenient for two direction travel, but it also "
                                  "serves as a security measure at a what?\nA. bank\nB. library\nC. department store\nD. mall"
                                  "\nE. new york",
                "lambada_openai": "\n\nIn my palm is a clear stone",
                "mmlu_pro": "\nI. Unsafe practices, Distress, Fear, Serious"}
        for name in PAPERS:
            with self.subTest(name):
                task = load(name, "generative", limit=2)
                [(kind, (prompt, options)), *_] = requests(task, 1)
                self.assertEqual((kind, task.config.num_fewshot, options["until"]), ("generate_until", 0, []))
                self.assertIn(said.get(name, "\n\n"), prompt)
                self.assertEqual(prompt, prompt.strip())
                self.assertNotIn(str(task.doc_to_target(task.eval_docs[0])), prompt[-200:] if name == "lambada_openai" else "")

    def test_right_and_wrong_answers_are_marked(self):
        for name, right, wrong in (("commonsense_qa", "A. bank", "B. library"),
                                   ("gsm8k", "#### 18", "#### 18.5"),
                                   ("lambada_openai", '"Signs."', "sign"),
                                   ("mmlu_pro", "The answer is (I).", "The answer is (A).")):
            task, metric = load(name, "generative", limit=1), TASKS[name].metric
            doc = task.eval_docs[0]
            self.assertEqual(task.process_results(doc, [right]), {metric: 1, "answered": 1})
            self.assertEqual(task.process_results(doc, [wrong]), {metric: 0, "answered": 1})
            self.assertEqual(task.process_results(doc, [" "]), {metric: 0, "answered": 0})

    def test_the_authors_answers_are_right(self):
        for name, field in (("gsm8k", "answer"), ("lambada_openai", "word")):
            task = load(name, "generative")
            self.assertTrue(all(task.process_results(doc, [doc[field]])[TASKS[name].metric] for doc in task.eval_docs), name)
        task = load("mmlu_pro", "lm-eval", limit=1)
        for doc in task.dataset["validation"]:
            self.assertEqual(answers.mmlu_pro(doc, [doc["cot_content"]])["exact_match"], 1, doc["cot_content"])

    def test_limit_keeps_the_first_questions_and_all_examples(self):
        task = load("gsm8k", "lm-eval", limit=2)
        self.assertEqual((len(task.eval_docs), len(task.dataset["train"])), (2, 7473))
        self.assertEqual(task.eval_docs[0], load("gsm8k", "generative").eval_docs[0])

    def test_nothing_is_written(self):
        folders = ("HOME", "HF_HOME", "HF_DATASETS_CACHE")
        with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, dict.fromkeys(folders, home)):
            for name in PAPERS:
                requests(load(name, "generative"), 2)
            self.assertEqual(list(Path(home).rglob("*")), [])


GOOD = {  # file: a valid record for it
    "gsm8k/test.jsonl": {"question": "1+1?", "answer": "It is 2\n#### 2"},
    "gsm8k/train.jsonl": {"question": "1+2?", "answer": "It is 3\n#### 3"},
    "lambada/lambada_test.jsonl": {"text": "One two"},
    "csqa/dev_rand_split.jsonl": {"answerKey": "A", "id": "x", "question": {
        "stem": "Which?", "choices": [{"label": label, "text": f"text {label}"} for label in "ABCDE"]}},
    "mmlu_pro/test_first300.jsonl": {"question_id": 1, "question": "Which?", "options": ["x", "y"], "answer": "B",
                                     "answer_index": 1, "cot_content": "", "category": "law"},
    "mmlu_pro/validation.jsonl": {"question_id": 2, "question": "Which?", "options": ["x", "y"], "answer": "A",
                                  "answer_index": 0, "cot_content": "A: Let's think step by step. x.", "category": "law"},
    "cnn_dm/cnn_dm_test_50.jsonl": {"id": "x", "article": "Much.", "highlights": "Little ."},
    "human_eval/HumanEval.jsonl.gz": {"task_id": "HumanEval/0", "prompt": "def one():\n    \"\"\" One. \"\"\"\n", "entry_point": "one",
                                      "canonical_solution": "    return 1\n", "test": "def check(one):\n    assert one() == 1\n"},
}


@needs_lm_eval
class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for file in GOOD:
            (self.folder / file).parent.mkdir(exist_ok=True)
            self.write(file, GOOD[file], GOOD[file])

    def write(self, file, *lines):
        text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        content = b"\n".join(text) + b"\n"
        (self.folder / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)

    def load(self, name, protocol):
        with mock.patch.object(tasks.programs, "check"):  # these tests run no programs
            return load(name, protocol, data=self.folder, run_generated_code=True)

    def test_each_file_of_a_task_is_needed_and_no_other(self):
        for name, task in TASKS.items():
            for protocol in PROTOCOLS:
                for file in GOOD:
                    with self.subTest(name, protocol=protocol, missing=file):
                        (self.folder / file).rename(self.folder / "away")
                        if file in task.files[protocol]:
                            with self.assertRaises(FileNotFoundError) as caught:
                                self.load(name, protocol)
                            own = "own task " + HUB[name][0]
                            for said in (f"task {name}:", str(self.folder / file), "HARP_EVAL_DATA", "internet", own):
                                self.assertIn(said, str(caught.exception))
                        else:
                            self.load(name, protocol)
                        (self.folder / "away").rename(self.folder / file)

    def test_lm_evals_own_task_that_the_error_names_exists(self):
        definitions = {**HUB_FILE, "mmlu_pro": "mmlu_pro/_mmlu_pro.yaml"}
        for name, file in definitions.items():
            text = (Path(lm_eval_tasks.__file__).parent / file).read_text()
            own, hub = HUB[name]
            self.assertRegex(text, rf"(?m)^(task|group): {own}$")
            if name != "mmlu_pro":
                self.assertIn(f"dataset_path: {hub}\n", text)

    def test_the_variable_names_the_folder(self):
        with mock.patch.dict(os.environ, HARP_EVAL_DATA=str(self.folder)):
            self.assertEqual(load("gsm8k", "generative", data=None).eval_docs[0], GOOD["gsm8k/test.jsonl"])
        with mock.patch.dict(os.environ), self.assertRaisesRegex(FileNotFoundError, "HARP_EVAL_DATA, which is not set"):
            os.environ.pop("HARP_EVAL_DATA", None)
            load("gsm8k", "generative", data=None)

    def test_generated_code_is_run_only_where_that_is_allowed(self):
        for protocol in PROTOCOLS:
            with self.assertRaisesRegex(ValueError, "--run-generated-code"):
                load("humaneval", protocol, data=self.folder)
            with mock.patch.object(tasks.programs, "check", side_effect=tasks.programs.CannotRun("no namespaces")), \
                    self.assertRaisesRegex(OSError, "no namespaces"):
                load("humaneval", protocol, data=self.folder, run_generated_code=True)
            self.assertTrue(self.load("humaneval", protocol).UNSAFE_CODE)

    def test_a_broken_archive_is_named(self):
        (self.folder / "human_eval/HumanEval.jsonl.gz").write_bytes(b"no archive")
        with self.assertRaisesRegex(ValueError, "HumanEval.jsonl.gz: Not a gzipped file"):
            self.load("humaneval", "generative")
        self.write("human_eval/HumanEval.jsonl.gz", {**GOOD["human_eval/HumanEval.jsonl.gz"], "entry_point": "two"})
        with self.assertRaisesRegex(ValueError, "line 1: the prompt must define the entry_point 'two'"):
            self.load("humaneval", "generative")

    def test_a_malformed_line_is_named(self):
        def changed(file, **changes):
            return {key: value for key, value in {**GOOD[file], **changes}.items() if value is not None}

        gsm8k, lambada, csqa, mmlu, cnn = [task.files["generative"][0] for task in map(TASKS.get, (
            "gsm8k", "lambada_openai", "commonsense_qa", "mmlu_pro", "cnn_dailymail"))]
        question = GOOD[csqa]["question"]
        for file, line, wrong in (
                (gsm8k, b"{", "Expecting"),
                (gsm8k, b"", "the line is empty"),
                (gsm8k, b'"\xff"', "can't decode byte 0xff"),
                (gsm8k, b"[1]", "an object with a field"),
                (gsm8k, changed(gsm8k, question=None), "there is no field 'question'"),
                (gsm8k, changed(gsm8k, question=3), "question must be a text, not 3"),
                (gsm8k, changed(gsm8k, question=" "), "question is empty"),
                (gsm8k, changed(gsm8k, question="\ud800"), "surrogates not allowed"),
                (gsm8k, changed(gsm8k, answer="two"), "must end in '#### '"),
                (lambada, {"text": "One"}, "must end in a word"),
                (lambada, {"text": "One two "}, "must end in a word"),
                (csqa, changed(csqa, answerKey=None), "there is no field 'answerKey'"),
                (csqa, changed(csqa, answerKey="F"), "answerKey must be one of A, B, C, D, E, not 'F'"),
                (csqa, changed(csqa, question={**question, "choices": question["choices"][:4]}), "labelled A to E"),
                (csqa, changed(csqa, question={**question, "choices": ["x"]}), "an object with a field 'label'"),
                (mmlu, changed(mmlu, options=["x"]), "options must be 2 to 10 texts"),
                (mmlu, changed(mmlu, answer="C"), "answer must be one of A, B, not 'C'"),
                (mmlu, changed(mmlu, answer_index=0), "answer B and answer_index 0 disagree"),
                (mmlu, changed(mmlu, answer_index=True), "answer_index must be a whole number"),
                (cnn, changed(cnn, highlights=None), "there is no field 'highlights'")):
            with self.subTest(wrong):
                name = next(name for name, task in TASKS.items() if file in task.files["generative"])
                self.write(file, GOOD[file], line, GOOD[file])
                with self.assertRaises(ValueError) as caught:
                    load(name, "generative", data=self.folder, limit=1)
                self.assertIn(f"task {name}: {self.folder / file}, line 2: ", str(caught.exception))
                self.assertIn(wrong, str(caught.exception))
                self.write(file, GOOD[file])

    def test_an_empty_file_is_an_error(self):
        (self.folder / "gsm8k/train.jsonl").write_bytes(b"")
        with self.assertRaisesRegex(ValueError, "train.jsonl, line 1: the line is empty"):
            load("gsm8k", "lm-eval", data=self.folder)

    def test_summaries_are_compared_without_penn_treebank_spacing(self):
        for protocol in PROTOCOLS:
            task = load("cnn_dailymail", protocol, data=self.folder)
            self.assertEqual(task.doc_to_target(task.eval_docs[0]), "Little.")

    def test_line_separators_inside_a_text_are_no_line_ends(self):
        self.write("lambada/lambada_test.jsonl", '{"text": "One\u2028two\x85 three"}'.encode())
        self.assertEqual(load("lambada_openai", "generative", data=self.folder).eval_docs[0]["word"], "three")


class Registry(unittest.TestCase):
    def test_arguments_are_checked(self):
        for arguments, said in ((("gsm", "lm-eval"), "no task 'gsm'; there are commonsense_qa,"),
                                (("gsm8k", "chat"), "no protocol 'chat'; there are lm-eval, generative"),
                                (("gsm8k", "lm-eval", None, 0), "limit must be at least 1, not 0")):
            with self.assertRaisesRegex(ValueError, said):
                tasks.load(*arguments)

    @needs_data
    def test_the_papers_columns_and_the_files_exist(self):
        with (SHARED / "paper/main_table.csv").open() as file:
            columns = csv.DictReader(file).fieldnames
        self.assertLessEqual({TASKS[name].paper_column for name in PAPERS}, set(columns))
        self.assertIsNone(TASKS["humaneval"].paper_column)
        files = {file for task in TASKS.values() for names in task.files.values() for file in names}
        self.assertEqual(files, set(GOOD))
        for file in {file for name in PAPERS for names in TASKS[name].files.values() for file in names}:
            self.assertTrue((SHARED / file).is_file(), file)

    def test_every_definition_is_listed(self):
        named = {f"harp_{path.stem}" for path in Path(tasks.__file__).parent.glob("*.yaml")}
        self.assertEqual(named, {name for task in TASKS.values() for name in task.lm_eval_name.values()})


if __name__ == "__main__":
    unittest.main()
