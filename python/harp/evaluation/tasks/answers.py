"""Answers taken from what a model wrote, and their marks: the generative protocol of all tasks but CNN/DailyMail.

`process_results` of a task gives its metric, 0 or 1, and `answered`: 1 where an answer was found at all. What is not found is
wrong, never guessed. docs/TASKS.md has the rules. lm-eval loads this file by its path, so it imports nothing beside it.
"""

import re
from decimal import Decimal
from functools import lru_cache

from datasets import Dataset

# A minus sign is one only where nothing stands before it to subtract from; a number inside a name (GSM8K) is none.
NUMBER = re.compile(r"((?<![\w)\]}])[-−])?\\?[$€£]?(?<![A-Za-z_0-9])"
                    r"((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
HASHES = re.compile(r"####[\s:=*_`\\(\[{]*")
HEADING = re.compile(r"[.):][ \t]*[^\W_]")  # after a number: "#### 1. First add" is a heading
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def commonsense_qa(doc, results):
    return _marks("acc", letter(results[0], len(doc["choices"]["label"])), doc["answerKey"])


def gsm8k(doc, results):
    return _marks("exact_match", number(results[0]), number(doc["answer"]))


def lambada_openai(doc, results):
    return _marks("acc", first_word(results[0]), first_word(doc["word"]))


def mmlu_pro(doc, results):
    return _marks("exact_match", letter(results[0], len(doc["options"])), doc["answer"])


def _marks(metric, answer, target):
    return {metric: int(answer == target), "answered": int(answer is not None)}


def number(text):
    """The number after the last "####" that has one, else the last number of the text; None if there is none."""
    text = text.replace("{,}", ",")  # LaTeX: 1{,}080
    for hashes in reversed(list(HASHES.finditer(text))):
        found = NUMBER.match(text, hashes.end())
        if found and not HEADING.match(text, found.end()):
            return _value(found)
    found = list(NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def _value(found):
    return Decimal(("-" if found[1] else "") + found[2].replace(",", ""))


def first_word(text):
    """The first word, in lower case and without punctuation around it; None if there is none."""
    found = WORD.search(text)
    return found[0].replace("’", "'").casefold() if found else None


def split_last_word(dataset):
    """`process_docs` of LAMBADA: a `passage` and the `word` that ends it, which the model is to find.

    The last word is WORD's, not what stands after the last space: some texts end in a line end and a word, or in `said, "Word`.
    """
    def split(doc):
        last = list(WORD.finditer(doc["text"]))[-1]
        return {**doc, "passage": doc["text"][:last.start()].rstrip(), "word": last[0]}

    return Dataset.from_list([split(doc) for doc in dataset])


def letter(text, options):
    """The letter of one of so many options, by the first of these rules that finds one; None if none does.
    1. the last statement of an answer: "the answer is (C)", "Answer: C", "the best option is C", "I choose C", \\boxed{C}
    2. the letter that the text opens with: "C", "(c)", "C. bank", unless it opens a list of options
    3. the last line that is a letter and nothing else
    4. the only letter in brackets, in bold or after "option", "choice" or "letter", unless "not" or "nor" stands before it
    """
    stated, whole, opening, listed, line, mentioned = _letter_rules("ABCDEFGHIJ"[:options])
    text = text.strip()
    if found := _letters(stated, text):
        return found[-1]
    if found := whole.match(text):
        return found[1].upper()
    if len(set(_letters(listed, text))) <= 1 and (found := _letters(opening, text)):
        return found[0]
    if found := _letters(line, text):
        return found[-1]
    found = set(_letters(mentioned, text))
    return found.pop() if len(found) == 1 else None


def _letters(rule, text):
    return [next(filter(None, found.groups())) for found in rule.finditer(text)]


@lru_cache
def _letter_rules(letters):
    """Compiled rules of `letter`. "A" and "I" are words too: they need punctuation, an end or a reason after them."""
    words, others = re.sub("[^AI]", "", letters), re.sub("[AI]", "", letters)
    close = r"""(?=[ \t]*(?:[)\]}:*_,;$]|\.(?!\w)|["'”’](?!\w)|$))"""
    reason = r"(?=\s+(?:because|since|as|for|which|and|with)\b|\s+[-–—(])"
    alone = rf"(?:[{words}](?:{close}|{reason})|[{others}](?![\w'’]|\.\w))"
    opened = r"""(?:[\s:=*_"'“‘`$({\[]|\\(?:boxed|text(?:bf|rm|it)?|mathrm|mathbf))*"""
    noun = r"(?:option|choice|letter)"
    statement = (rf"(?i:\b(?:answer(?:\s+{noun})?|(?:correct|best|right|final)\s+{noun})"
                 r"(?:\s+to\s+(?:the|this)\s+question)?[\s*_]*(?:\b(?:is|would\s+be|should\s+be|must\s+be)\b|[:=])"
                 r"|\b(?:choose|chose|pick|select|go\s+with)\b)")
    filler = rf"(?i:(?:{opened}(?:{noun}|(?:most\s+)?likely|probably|therefore|thus|clearly|definitely|indeed)\b)*)"
    several = rf"(?!(?:\W+[{letters}]\b)*\W+(?:or|and)\W+(?i:{noun}\s+)?[{letters}](?![\w'’]))"  # "(A) or (B)" states none
    return [re.compile(rule, re.MULTILINE) for rule in (
        rf"(?:{statement}{filler}{opened}|\\boxed{opened})({alone}){several}",
        rf"\W*([{letters}{letters.lower()}])\W*\Z",
        rf"\A[\s*_\"'“(\[]*({alone}){several}",
        rf"^[\s*_>(\[-]*([{letters}])[).:\]](?!\w)",
        rf"^\W*([{letters}])\W*$",
        rf"(?<!not )(?<!nor )(?:[(\[]([{letters}])[)\]]|\*\*([{letters}])\*\*|(?i:\b{noun})\s+({alone}))",
    )]
