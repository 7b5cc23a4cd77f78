"""Extracts answers from what a model wrote and marks them: the generative protocol of all tasks but CNN/DailyMail.

A task's `process_results` gives its metric, 0 or 1, and `answered`, 1 if an answer was found. An answer that is not found is
wrong; nothing is guessed. docs/TASKS.md has the rules. lm-eval loads this file by its path, so it imports nothing next to it.
"""

import re
import runpy
import unicodedata
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

from datasets import Dataset

without_thoughts = runpy.run_path(str(Path(__file__).with_name("thoughts.py")))["without_thoughts"]

WORDS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def _number_rule(gap, separators):
    """Digits may be in groups of three. A minus sign counts only if there is nothing before it to subtract from. A number inside a
    name (GSM8K) does not count, nor does a power of a name (18 m^2).

    gap: what may be between a sign and its number. separators: what may separate groups.
    """
    digits = rf"[0-9]{{1,3}}(?:[{separators}][0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
    fraction = r"(?:[ ](?P<numerator>[0-9]+))?/(?P<denominator>0*[1-9][0-9]*)(?![0-9/]|\.[0-9])"
    times_ten = r"[ ]*(?:[×x*·]|\\times|\\cdot)[ ]*10(?:\^|\*\*)"
    exponent = rf"(?:[eE]|{times_ten})\{{?(?P<exponent>[-+−]?[0-9]{{1,2}})\}}?(?!\w)"
    power = r"(?:\^|\*\*)\{?(?P<power>[-−]?[0-9]{1,2})\}?(?![0-9])"
    word = rf"[ ](?P<word>{'|'.join(WORDS)})\b"
    return re.compile(rf"(?P<sign>(?<![\w)\]}}])[-−–]{gap})?\\?[$€£¥₹]?{gap}(?<![A-Za-z0-9])(?<![A-Za-z0-9)]_)(?<![A-Za-z)}}]\^)(?<![A-Za-z)}}]\^{{)"
                      rf"(?P<digits>{digits})(?:{fraction}|{exponent}|{power}|{word})?")


NUMBER = _number_rule(gap="", separators=",'’\u00a0")
NUMBER_BEHIND_HASHES = _number_rule(gap="[ \u00a0]?", separators=",'’\u00a0 ")
HASHES = re.compile(r"####[\s:=*_`\\(\[{]*(?:(?i:(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?|n|approx\.|approximately|about|usd?|eur|gbp|inr|rs\.?"
                    r"|boxed|text(?:bf|rm|it)?|math(?:bf|rm))"
                    r"(?![a-z])[\s:=*_`\\(\[{]*))*[~≈+]?")
HEADING = re.compile(r"[.):][ \t]*[^\W_]")  # what follows a number in a heading, as in "#### 1. First add"
BOXED = re.compile(r"\\boxed\s*\{[\s\\${(]*")
# What follows the first number of a calculation, as in "#### 12 + 5 = 17".
CALCULATION = re.compile(r"[ \t]*\\?%?(?:[ \t]?[A-Za-z]+)?[ \t]*(?:[-+−–*/×x·÷]|of\b|\\(?:times|cdot|div)\b)"
                         r"[ \t(]*\\?[$€£¥₹]?[ \t]?[0-9][^\n=]*=")
EQUALS = re.compile(r"[=≈][\s*_`\\(\[{]*")
LATEX_FRACTION = re.compile(r"(?P<whole>[0-9])?[ ]?\\[dtc]?frac[ ]*(?:\{[ ]*(?P<sign>[-−]?)(?P<numerator>[0-9]+(?:\.[0-9]+)?)[ ]*\}|(?P<one>[0-9]))"
                            r"[ ]*(?:\{[ ]*(?P<denominator>[0-9]+)[ ]*\}|(?P<two>[0-9]))")
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# A model that does not stop continues with a question of its own.
END_OF_TURN = re.compile(r"<\|[a-z_]+\|>|<end_of_turn>|</s>")
NEXT_QUESTION = re.compile(r"^[ \t#*>_]*(?:(?i:(?:(?:next|new|another)[ ])?(?:question|problem|exercise|q)(?:[ ]*#?[0-9]+)?[*_]*[ ]*[:.)]"
                           r"|(?:user|human|instruction)[*_]*[ ]*:)"
                           r"|(?:Solve this problem|Answer this multiple-choice question)\b)", re.MULTILINE)
SPACES = dict.fromkeys((0xa0, 0x2007, 0x2008, 0x2009, 0x200a, 0x202f), "\u00a0")
BRACKETS = str.maketrans("【】〔〕", "[][]")


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
    """The number after the last "####" that has one, else that in the last \\boxed{}, else the last in the text; None if there is none."""
    text = re.sub(r"\\[, ](?=[0-9]{3})", "\u00a0", _plain(without_thoughts(text))).replace("{,}", ",").replace(",\\!", ",")  # LaTeX: 1\,080, 1{,}080
    text = LATEX_FRACTION.sub(_fraction, text)
    first = _number(_first_question(text))
    return _number(text) if first is None else first


def _number(text):
    for hashes in reversed(list(HASHES.finditer(text))):
        found = NUMBER_BEHIND_HASHES.match(text, hashes.end())
        if found and not HEADING.match(text, found.end()):
            return _value(_result(text, found))
    boxed = [found for box in BOXED.finditer(text) if (found := NUMBER_BEHIND_HASHES.match(text, box.end()))]
    if boxed:
        return _value(_result(text, boxed[-1]))
    found = list(NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def _fraction(found):
    whole = f"{found['whole']} " if found["whole"] else ""
    return f"{whole}{found['sign'] or ''}{found['numerator'] or found['one']}/{found['denominator'] or found['two']}"


def _result(text, first):
    """The number itself or, where a calculation begins with it, what the calculation equals at the end of its line."""
    if not CALCULATION.match(text, first.end()):
        return first
    end = text.find("\n", first.end()) % (len(text) + 1)  # the text's end if there is no other line
    results = [NUMBER_BEHIND_HASHES.match(text, equals.end()) for equals in EQUALS.finditer(text, first.end(), end)]
    return next(filter(None, reversed(results)), first)


def _value(found):
    value = Decimal(re.sub("[^0-9.]", "", found["digits"]))
    if found["denominator"]:
        whole, numerator = (value, Decimal(found["numerator"])) if found["numerator"] else (0, value)
        value = whole + numerator / Decimal(found["denominator"])
    elif found["exponent"]:
        value = value.scaleb(int(found["exponent"].replace("−", "-")))
    elif found["power"] and value:
        value **= int(found["power"].replace("−", "-"))
    elif found["word"]:
        value = value.scaleb(WORDS[found["word"]])
    return -value if found["sign"] else value


def _plain(text):
    """Replaces full-width signs, other scripts' digits and one-character fractions by usual ones, and all no-break and thin spaces by one."""
    def usual(match):
        sign = match[0]
        if 0xff01 <= ord(sign) <= 0xff5e:
            return chr(ord(sign) - 0xfee0)
        if unicodedata.decimal(sign, None) is not None:
            return str(unicodedata.decimal(sign))
        if unicodedata.decomposition(sign).startswith("<fraction>"):
            before = match.string[match.start() - 1:match.start()]
            return (" " if before.isdecimal() else "") + unicodedata.normalize("NFKC", sign).replace("⁄", "/")
        return sign

    return re.sub(r"[^\x00-\x7f]", usual, text).translate(SPACES).translate(BRACKETS)


def _first_question(text):
    """What was written before any further question. A question in the first line is the one that was asked, repeated."""
    text = text.lstrip()
    first_line = len(text.split("\n", 1)[0])
    ends = [found.start() for found in END_OF_TURN.finditer(text) if found.start() > 0]
    ends += [found.start() for found in NEXT_QUESTION.finditer(text, first_line)]
    return text[:min(ends, default=len(text))]


def first_word(text):
    """The first word, in lower case and without punctuation around it; None if there is none."""
    found = WORD.search(without_thoughts(text))
    return found[0].replace("’", "'").casefold() if found else None


def split_last_word(dataset):
    """`process_docs` of LAMBADA: a `passage`, and the `word` that ends it, which the model has to find.

    The last word is the last match of WORD, not what follows the last space: some texts end with a line end and a word, or `said, "Word`.
    """
    def split(doc):
        last = list(WORD.finditer(doc["text"]))[-1]
        return {**doc, "passage": doc["text"][:last.start()].rstrip(), "word": last[0]}

    return Dataset.from_list([split(doc) for doc in dataset])


def letter(text, options):
    """The letter of one of `options` options, by the first of these rules that finds one; None if none does.
    1. the last statement of an answer: "the answer is (C)", "Answer: c", "the best option is C", "I choose C", \\boxed{C}, "I think it's C",
       "C is correct"
    2. the letter at the beginning of the text: "C", "(c)", "C. bank", unless it begins a list of options
    3. the last line that is only a letter
    4. the only letter in brackets, in bold or after "option", "choice" or "letter", unless "not" or "nor" precedes it
    """
    text = _plain(without_thoughts(text)).replace("\u00a0", " ").strip()
    first = _letter(_first_question(text), options)
    return _letter(text, options) if first is None else first


def _letter(text, options):
    letters = "ABCDEFGHIJ"[:options]
    *stated, whole, opening, listed, line, mentioned = _letter_rules(letters)
    text = text.strip()
    if found := sorted((match.start(), _one(match)) for rule in stated for match in rule.finditer(text)):
        return found[-1][1]
    if found := whole.match(text):
        return _one(found)
    begun = list(dict.fromkeys(_letters(listed, text)))  # "C. bank" with remarks on A and B below is no list
    if (len(begun) <= 1 or begun[0] != letters[0]) and (found := _letters(opening, text)):
        return found[0]
    if found := _letters(line, text):
        return found[-1]
    found = set(_letters(mentioned, text))
    return found.pop() if len(found) == 1 else None


def _letters(rule, text):
    return [_one(found) for found in rule.finditer(text)]


def _one(found):
    return next(filter(None, found.groups())).upper()


@lru_cache
def _letter_rules(letters):
    """Compiled rules of `letter`. "A" and "I" are words too, so they must be followed by punctuation, an end or a reason. So must any letter
    where little else indicates an answer."""
    words, others = re.sub("[^AI]", "", letters), re.sub("[AI]", "", letters)
    signs = r"(?:[^\w\n]|_)*"  # of one line: going on over lines takes minutes where a model repeats a line of signs
    close = r"""(?=[ \t]*(?:[)\]}:*_,;$!?<\\`»]|\.(?!\w)|["'”’](?!\w)|$))"""
    reason = r"(?=\s+(?:because|since|as|for|which|and|with)\b|\s+[-–—(])"
    closed = rf"(?:[{letters}](?:{close}|{reason})|[{others.lower()}]{close})"
    alone = rf"(?:[{words}](?:{close}|{reason})|[{others}](?![^\W_]|_\w|['’]\w|\.\w)|[{letters.lower()}]{close})"
    opened = r"""(?:[\s:=*_"'“‘«`$({\[>→✅•–-]|\\(?:boxed|text(?:bf|rm|it)?|mathrm|mathbf|[(\[]))*"""
    noun = r"(?:option|choice|letter)"
    adverb = r"(?:(?:most\s+)?likely|probably|therefore|thus|clearly|definitely|indeed|actually|simply|then)"
    be = rf"\b(?:is|was|(?:would|should|must|has\s+to|will|seems\s+to|appears\s+to)(?:\s+{adverb})?\s+be)\b"
    statement = (rf"(?:(?i:\b(?:(?:answer|ans)(?:\s+{noun})?|(?:correct|best|right|final|my|most\s+\w+)\s+(?:{noun}|one|guess|pick|response|fit|match)"
                 rf"|{noun}(?=\s*:)|letter(?=\s*{be}))"
                 r"(?:\s+to\s+(?:the|this)(?:\s+[\w-]+){0,2}\s+question|\s+here|,\s+then,)?"
                 rf"[\s*_\"'”’]*(?:{be}|[:=>→]|[-–—](?=\s))"
                 r"|\b(?:choose|chose|pick|select|(?:go|going)\s+(?:with|for)|opt\s+for)\b"
                 r"|^[ \t]*[#*_]+[ \t]*(?:(?:final|correct)\s+)?answer[ \t*_]*$)|答案(?:是|为|选|:))")
    belief = (rf"(?i:\b(?:i(?:\s+would|['’]d)?\s+(?:think|believe|guess|say|suppose)(?:\s+that)?(?:\s+it(?:['’]s|\s+{be}))?"
              rf"|(?:it|that)(?:['’]s|\s+{be}))(?!\w))")
    filler = rf"(?i:(?:,?{opened}(?:{noun}|{adverb})\b,?)*)"
    others_too = (rf"(?:\W+[{letters}]\b)*\W+(?:or|and)\W+(?i:{noun}\s+)?[{letters}](?![\w'’])|\W*[/&]\W*[{letters}](?![\w'’])"
                  rf"|[)\]*]*,\s*[(\[*]*[{letters}][)\]*]*\s*(?:[.,]|$)")
    several = rf"(?!{others_too})"  # "(A) or (B)" states no answer
    surely = r"(?:(?:clearly|most\s+likely|probably|definitely|indeed)\s+)?"
    praise = (rf"\W{{0,3}}\s+is\s+{surely}(?i:(?:the\s+)?(?:correct|right|best|answer)(?=\s*(?:[.,;:!)*]|$|(?:because|since|as)\b))"
              r"|the\s+(?:correct|right|best|(?:most\s+)?\w+)\s+(?:answer|option|choice|one|fit|match)\b)")
    return [re.compile(rule, re.MULTILINE) for rule in (
        rf"(?:{statement}{filler}{opened}|\\boxed{opened})({alone}){several}",
        rf"{belief}{filler}{opened}({closed}){several}",
        rf"(?<![\w'’-])(?<!not )(?<!nor )(?<!or )(?<!and )([{letters}]){praise}",
        rf"[\W_]*(?:A[ ]?:[ ][\W_]*)?([{letters}{letters.lower()}])[\W_]*\Z",
        rf"\A[\s*_\"'“(\[•✅]*((?:[{words}](?:{close}|{reason})|[{others}](?![\w'’]|\.\w)|[{letters.lower()}](?=\)))){several}",
        rf"^[ \t*_>(\[-]*([{letters}{letters.lower()}])[).:\]](?!\w)",
        rf"^{signs}(?i:(?:so|thus|therefore|hence),?[ \t]+(?:{noun}[ \t]+)?{signs})?([{letters}]){signs}$",
        rf"(?<!not )(?<!nor )(?:[(\[]([{letters}])[)\]]|\*\*([{letters}])(?:\*\*|[.):][ ])|(?i:\b(?:{noun}|answer))\s+({alone}))",
    )]
