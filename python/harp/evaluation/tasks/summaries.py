"""CNN/DailyMail: reference summaries made readable again, and ROUGE against them. lm-eval loads this file by its path."""

import re

from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer

SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
# Penn Treebank spacing, undone in this order. ROUGE compares runs of letters and digits, so what moves it is the names of
# brackets (-LRB- is a word to it) and split words (did n't against didn't); the rest makes the reference readable.
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
    """A Penn Treebank tokenised text with its words, brackets, quotation marks and punctuation as one writes them."""
    for pattern, replacement in DETOKENIZE:
        text = pattern.sub(replacement, text)
    return text


def process_docs(dataset):
    return Dataset.from_list([{**doc, "highlights": detokenize(doc["highlights"])} for doc in dataset])


def process_results(doc, results):
    """F-measures, 0 to 1, with stemming, whitespace made single: as lm-eval's cnn_dailymail_abisee computes them."""
    reference, summary = (" ".join(text.split()) for text in (doc["highlights"], results[0]))
    return {name: score.fmeasure for name, score in SCORER.score(reference, summary).items()}
