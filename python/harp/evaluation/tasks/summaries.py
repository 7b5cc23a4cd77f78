"""CNN/DailyMail: makes reference summaries readable again, and computes ROUGE against them. lm-eval loads this file by its path."""

import re
import runpy
from pathlib import Path

from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer

without_thoughts = runpy.run_path(str(Path(__file__).with_name("thoughts.py")))["without_thoughts"]
SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
# Undoes Penn Treebank spacing, in this order. ROUGE compares runs of letters and digits, so only two things change it: the names
# of brackets (-LRB- is a word to it) and split words (did n't against didn't). The rest makes the reference readable.
DETOKENIZE = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"-L[RSC]B-", "("),
    (r"-R[RSC]B-", ")"),
    (r" (?=[.,;:!?%)](?!\S)|\.\.\.)", ""),
    (r"`` ?| ?''", '"'),
    (r"(?<!\S)` ?", "'"),
    (r" (?=n't\b|'(?:s|m|d|re|ve|ll)\b|'(?!\S))", ""),
    (r"\b([Cc]an) (?=not\b)", r"\1"),
    (r"([(£$€]) ", r"\1"),
)]


def detokenize(text):
    """A Penn Treebank tokenised text with its words, brackets, quotation marks and punctuation written as usual."""
    for pattern, replacement in DETOKENIZE:
        text = pattern.sub(replacement, text)
    return text


def process_docs(dataset):
    return Dataset.from_list([{**doc, "highlights": detokenize(doc["highlights"])} for doc in dataset])


def process_results(doc, results):
    """F-measures, 0 to 1, with stemming and single spaces, computed like lm-eval's cnn_dailymail_abisee."""
    reference, summary = (" ".join(text.split()) for text in (doc["highlights"], without_thoughts(results[0])))
    return {name: score.fmeasure for name, score in SCORER.score(reference, summary).items()}
