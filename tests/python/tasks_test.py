#!/usr/bin/env python3
"""The evaluation's tasks: lm-eval's own prompts from local files, answers found in what models write, errors that name a line.

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
from decimal import Decimal
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
    from datasets import Dataset, disable_progress_bars
    from lm_eval import simple_evaluate
    from lm_eval import tasks as lm_eval_tasks
    from lm_eval.api.task import ConfigurableTask
    from tasks import answers, programs, summaries
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


@needs_lm_eval
class Extraction(unittest.TestCase):
    def check(self, extract, table):
        for text, expected in table.items():
            with self.subTest(text):
                self.assertEqual(extract(text), expected)

    def test_letters(self):
        self.check(lambda text: answers.letter(text, 5), {
            # stated answers
            "The answer is (C).": "C",
            "the ANSWER is: C": "C",
            "**Answer:** B": "B",
            "**Answer**: (B) library": "B",
            "The answer is **D**.": "D",
            "The correct answer is option B, a library.": "B",
            "The correct option is B": "B",
            "The best choice would be E.": "E",
            "The answer to the question is A.": "A",
            "The answer is most likely C": "C",
            "The answer is A because banks need security.": "A",
            "Answer: A. bank": "A",
            "Answer:\n\nA) bank": "A",
            "I would choose B.": "B",
            "We get $\\boxed{D}$": "D",
            "So $\\boxed{\\text{(D)}}$.": "D",
            "The answer is: $\\boxed{\\textbf{(B)}}$": "B",
            'The answer is "C".': "C",
            "answer: c": "C",
            "Answer: a": "A",
            "The answer is: **c**": "C",
            "the answer is c) store": "C",
            "Ans: D": "D",
            "Correct answer - B": "B",
            "My answer: (d)": "D",
            "choice: b": "B",
            "the correct one is E": "E",
            "I would go with C": "C",
            "I'm going with E.": "E",
            "I think it's D": "D",
            "I think it’s d.": "D",
            "It must be (C).": "C",
            "I'd say B": "B",
            "It's D because banks": "D",
            "B is correct": "B",
            "(B) is the correct answer.": "B",
            "I find that option B is the best choice": "B",
            "（Ｃ）": "C",
            "答案是Ｃ": "C",
            "Answer: 【B】": "B",
            "The answer is \\(C\\).": "C",
            "The answer is \\(A\\)": "A",
            '{"answer": "B"}': "B",
            "<answer>A</answer>": "A",
            "Answer: 'B'": "B",
            "Answer: «D»": "D",
            "Answer → C": "C",
            "The answer is:\n- B. library": "B",
            "### Answer\n\nC. store": "C",
            "**Answer**\n\nA. bank": "A",
            "The correct response is B": "B",
            "The answer would most likely be B.": "B",
            "The answer is, therefore, C": "C",
            "The answer is actually (D)": "D",
            "The answer was A.": "A",
            "The answer to the multiple-choice question is E": "E",
            "The answer here is B": "B",
            "Answer B": "B",
            "I'll go for C.": "C",
            "It would be B.": "B",
            "That should be (C)!": "C",
            "Banks are guarded.\nTherefore, A.": "A",
            "So option D": "D",
            "The answer seems to be C.": "C",
            "That appears to be B.": "B",
            "The best fit is A.": "A",
            "The letter is C": "C",
            "The price of a call option is E = 5": None,
            "The answer is _C_ here": "C",
            "• C. store": "C",
            "A: C": "C",
            "答案选C": "C",
            "<think>A? No, the answer is B.</think>\nC": "C",
            "Perhaps the answer is B.\n</think>\n\nThe answer is D.": "D",
            "<think>The answer is B, but": None,
            # corrected or excluded answers, or more than one
            "(A), (B)": None,
            "Neither A nor B is correct": None,
            "Answer: C/D": None,
            "Answer: C, D": None,
            "The answer is either D or E": None,
            "The answer is E, not A.": "E",
            "The answer is (A). Wait, that is wrong: the answer is (C).": "C",
            "The answer is (C), not (A).": "C",
            "The answer is not (C). The answer is (D).": "D",
            "The answer is (A) or (B).": None,
            "The answer is A and C": None,
            "Option A is wrong. Option B is wrong too. The answer is (E).": "E",
            "Answer: B\n\nA. bank\nB. library": "B",
            # at the beginning
            "C": "C",
            "c": "C",
            "(c)": "C",
            " B. library": "B",
            "B) library\n\nBanks are guarded too.": "B",
            "**B. library**": "B",
            "D mall": "D",
            "a) bank": "A",
            "(C) store\n\n(A) is incorrect because banks differ.\n(B) is too.": "C",
            "The most suitable option is **C. store**.": "C",
            "I would take **C. store**, of course.": "C",
            "__B__": "B",
            "A: bank": "A",
            "A\n\nExplanation: banks need it.": "A",
            # on the last line, or mentioned once
            "Banks need security.\n\nA": "A",
            "It is a bank (A), of course.": "A",
            "Clearly **C** fits best.": "C",
            "I think option D is right.": "D",
            "Not option A, and nor option B fits; option D does.": None,
            "It is not (B).": None,
            # a question that the model invents
            "The answer is C.\n\nQuestion: What?\nA. x\nB. y\nAnswer: A": "C",
            "C\n\nQuestion: Where?\nA. x\nB. y\nAnswer: B": "C",
            "C<|im_end|>\n<|im_start|>user\nB or D?": "C",
            "Question: What?\nThe answer is D": "D",
            # none
            "": None,
            "It's a bank.": None,
            "It is a.": None,
            "I think a": None,
            "Vitamin C is the best for you": None,
            "[invalid]": None,
            "bank": None,
            "A bank is guarded.": None,
            "I think a bank.": None,
            "The answer is a bank.": None,
            "The answer is A bank.": None,
            "Answer: I am not sure": None,
            "Answer: I'd say a bank": None,
            "The answer isn't clear.": None,
            "Between (A) and (C), both fit.": None,
            "A. bank\nB. library\nC. department store\nD. mall\nE. new york": None,
            "a) bank\nb) library": None,
            "So a bank it is": None,
            "It would be a bank.": None,
            "That is a": None,
            "A, B and C are all plausible.": None,
            "A or B": None,
            "E.g. a bank": None,
            "D.C. has many": None,
            "Vitamin C is good": None,
            "The answer is (F).": None,
            "The answer is Because": None,
            "The answer is Excellent": None,
        })

    def test_letters_of_ten_options(self):
        self.check(lambda text: answers.letter(text, 10), {
            "Thus f(x) = 2 (by A.3). The answer is (J).": "J",
            "The answer is (I).": "I",
            "The answer is I.": "I",
            "I believe that the answer is I": "I",
            "I believe it is 3.": None,
            "Answer: I believe it is 3.": None,
            "I.e. three": None,
            "I": "I",
            "i": "I",
            "(H) 42": "H",
            "The answer is (K).": None,
        })
        self.assertIsNone(answers.letter("The answer is (J).", 9))

    def test_numbers(self):
        self.check(lambda text: answers.number(text), {text: None if value is None else Decimal(value) for text, value in {
            "48 + 24 = 72\n#### 72": "72",
            "#### 72 clips\n\nLet me check: 48 + 24 = 73": "72",
            "####72": "72",
            "#### **$1,080.50**": "1080.5",
            "#### -7": "-7",
            "#### −7": "-7",
            "#### \\boxed{5}": "5",
            "#### 1. First add 48\n#### 2. Then add 24\n#### 72": "72",
            "#### 1. Add 48 and 24 to get 72": "72",
            "#### Step 2: add 24, which gives 72.": "72",
            "#### N = 72": "72",
            "#### 10\nNo, wait.\n#### 12": "12",
            "#### 1,080. That is all.": "1080",
            "The answer is 72.": "72",
            "The answer is $72.00.": "72",
            "She earns -$5": "-5",
            "She earns $-5": "-5",
            "48-24=24": "24",
            "a loss, so (-12)": "-12",
            "(3+2)-5": "5",
            "109,200,000 people": "109200000",
            "1{,}080": "1080",
            "1,2,3": "3",
            "half of it: .5": "0.5",
            "5% of them, 30km": "30",
            "72 (see GSM8K)": "72",
            "pages 10-15": "15",
            # in the ways in which models write them
            "#### - 5": "-5",
            "#### –5": "-5",
            "#### −$1,000.50": "-1000.5",
            "#### $ 1,250": "1250",
            "#### €500": "500",
            "#### 1 000": "1000",
            "#### 1 000 000 people": "1000000",
            "#### 1'000": "1000",
            "#### 1\\,000": "1000",
            "She has 5\u00a0000 left": "5000",
            "She has 5\u202f000.50 left": "5000.5",
            "She has 5\u2009000.": "5000",
            "they had 3 200 page books": "200",
            "- 5 apples": "5",
            "#### \uff17\uff12": "72",
            "#### \u0667\u0662": "72",
            "#### 1e3": "1000",
            "#### 1.5E+3": "1500",
            "#### 5e-1": "0.5",
            "#### 1.5 × 10^3": "1500",
            "#### $1.5 \\times 10^{3}$": "1500",
            "#### 10^3": "1000",
            "#### 2.5 million": "2500000",
            "#### 3/4": "0.75",
            "#### 1 3/4": "1.75",
            "#### $2\\frac{1}{2}$": "2.5",
            "#### 2½": "2.5",
            "#### 5/0": "5",
            "48 / 2 = 24": "24",
            "#### US$5\nCheck: 7": "5",
            "#### USD 5\nCheck: 7": "5",
            "#### ~5 or so, not 7": "5",
            "#### The answer is 5\nCheck: 7": "5",
            "#### $\\boxed{5}$\nCheck: 7": "5",
            "So \\boxed{\\$1{,}080}, which is 3 times 360": "1080",
            "#### 16 - 3 - 4 = 9": "9",
            "#### $10 * 3 = $30": "30",
            "#### 5 apples + 3 apples = 8 apples": "8",
            "#### 100% - 20% = 80%\nCheck: 7": "80",
            "#### 3 × 6 = 6 × 3 = 18": "18",
            "#### 48 / 2 = 24": "24",
            "#### 72 = 48 + 24": "72",
            "#### 72 (48 + 24 = 72, not 73)": "72",
            "#### 12 - 5 apples": "12",
            "\\boxed{12 + 5 = 17}, not 3": "17",
            "\\boxed{\\dfrac{-3}{4}}": "-0.75",
            "\\boxed{\\frac34}": "0.75",
            "\\boxed{1\\frac12}": "1.5",
            "\\frac{10.5}{2}": "5.25",
            "\\boxed{1\\ 800}": "1800",
            "\\boxed{1,\\!800}": "1800",
            "#### 40% of 45 = 18": "18",
            "It covers 18 m^2": "18",
            "It has 18 cm^{3}.": "18",
            "It is 10^-3": "0.001",
            "0^-1": "0",
            "The answer is _18_": "18",
            "x_1": None,
            "I think 5.</think>It is 7": "7",
            "<think>It is 5, or": None,
            # a question that the model invents
            "#### 18\nQuestion: Tom has 3 apples": "18",
            "#### 18\n\nQuestion: Tom has 3.\n#### 6": "18",
            "#### 18\n\n**Question 2:** Tom has 3.\n#### 6": "18",
            "#### 18\n\n## Problem 2\nTom has 3.": "18",
            "The answer is 18.\n\nQ: Tom has 3": "18",
            "#### 18<|im_end|>\n<|im_start|>user\n3+4": "18",
            "Sure.\nQuestion: 48 and 24?\n#### 72": "72",
            "Question: 48 clips?\nAnswer: 72": "72",
            "seventy-two": None,
            "": None,
            "####": None,
        }.items()})

    def test_first_words(self):
        self.check(answers.first_word, {
            "signs": "signs",
            ' "Signs."': "signs",
            "**Signs**\n\nBecause": "signs",
            "...signs of life": "signs",
            "<think>\nA word for life?\n</think>\n\nsigns": "signs",
            "<think>\nA word": None,
            "don’t": "don't",
            "Zoë!": "zoë",
            "re-enter it": "re-enter",
            "_signs_": "signs",
            "": None,
            "...": None,
        })

    def test_thoughts_are_no_answer(self):
        self.check(answers.without_thoughts, {
            **{f"{begin}A or B?{end}C": "C" for begin, end in THOUGHTS},
            **{f"A or B?{end}C": "C" for _, end in THOUGHTS},  # a chat template may have begun them
            **{f"{begin}A or B?": "" for begin, _ in THOUGHTS},
            "<think>A?</think>B?</think>C": "C",
            "<think>A?</think>C<think>or B": "C",
            "<think>A?</think>": "",
            "analysisA or B?assistantfinalC": "C",  # gpt-oss, without its control tokens
            "analysis": "analysis",
            "I think (A), not [B]. Final": "I think (A), not [B]. Final",
        })
        text = "<think>A signal.</think>A sign."
        self.assertEqual(summaries.process_results({"highlights": "A sign."}, [text])["rouge1"], 1.0)
        self.assertEqual(summaries.process_results({"highlights": "A sign."}, ["<think>A sign."])["rouge1"], 0.0)
        self.assertIsNone(programs.program("def f():\n", "f", "<think>\n```python\ndef f():\n    pass\n```"))

    def test_last_words(self):
        for text, passage, word in (("I care about signs", "I care about", "signs"),
                                    ('He yelled, "Evra', 'He yelled, "', "Evra"),
                                    ("a kind of\n\nPower", "a kind of", "Power"),
                                    ("I thought...Tess", "I thought...", "Tess")):
            [doc] = answers.split_last_word(Dataset.from_list([{"text": text}]))
            self.assertEqual((doc["passage"], doc["word"]), (passage, word))

    def test_penn_treebank_spacing_is_undone(self):
        self.check(summaries.detokenize, {
            "Locke 's club did n't lose .": "Locke's club didn't lose.",
            "It is 6 km -LRB- 3.7 miles -RRB- long .": "It is 6 km (3.7 miles) long.",
            "He can not pay £ 2,100 or 5 % .": "He cannot pay £2,100 or 5%.",
            "`` I 'm here , '' said the players ' captain .": '"I\'m here," said the players\' captain.',
            "A troll called ` fatal , ' was here ...": "A troll called 'fatal,' was here...",
            "Plain text, as it's written (here).": "Plain text, as it's written (here).",
        })
        same = summaries.process_results({"highlights": summaries.detokenize("He did n't pay -LRB- much -RRB- .")},
                                         ["He didn't pay (much)."])
        self.assertEqual(same, {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0})


THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("<seed:think>", "</seed:think>"),
            ("◁think▷", "◁/think▷"), ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"),
            ("<|begin_of_thought|>", "<|end_of_thought|>"),
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"))

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
