#!/usr/bin/env python3
"""Answers found in what models write: letters, numbers, words, programs, without thoughts.

Tests are skipped if lm-eval is missing.
"""

import importlib.util
import sys
import unittest
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python/harp/evaluation"))  # the package around `tasks` needs the compiled engine

LM_EVAL = all(importlib.util.find_spec(name) for name in ("lm_eval", "datasets", "rouge_score"))
if LM_EVAL:
    from datasets import Dataset
    from tasks import answers, programs, summaries

THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("<seed:think>", "</seed:think>"),
            ("◁think▷", "◁/think▷"), ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"),
            ("<|begin_of_thought|>", "<|end_of_thought|>"),
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"))


@unittest.skipUnless(LM_EVAL, "no lm-eval")
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

    def test_repeated_signs(self):
        """A model that repeats a line until its limit: hours for a rule whose time grows with the cube of the text."""
        for unit in ("#\n", "```\n", "- ", "-\n\n", "\u2013"):
            with self.subTest(unit):
                self.assertIsNone(answers.letter("x" + unit * 10_000, 10))
                self.assertEqual(answers.letter("The answer is C.\n" + unit * 10_000, 10), "C")

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


if __name__ == "__main__":
    unittest.main(verbosity=2)
