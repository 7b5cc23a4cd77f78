"""Asks one of lm-eval's models for log-likelihoods, in a separate process (agree.py starts it).

Reads {"model": NAME, "arguments": {...}, "pairs": [[context, continuation], ...]} from standard input and prints, for each pair,
[log-likelihood, is_greedy] or the error with which it was refused. Model "harp" also prints what lm-eval's clients of a server should give:
`local-completions` reads without a beginning-of-sequence token, `gguf` asks for the whole text and adds up the tokens that begin after the
context's characters.
"""

import json
import logging
import sys

from lm_eval.api.instance import Instance

logging.disable(logging.ERROR)
asked = json.load(sys.stdin)


def make(name, arguments):
    if name == "harp":
        from harp.lm_eval_model import HarpLM
        return HarpLM(**arguments)
    if name == "gguf":
        from lm_eval.models import gguf
        gguf.time.sleep = lambda _: None  # no waiting between retries of refused requests
        return gguf.GGUFLM(**arguments)
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    return LocalCompletionsAPI(**arguments)


def refused(error):
    return f"refused: {type(error).__name__}: {error}"[:160]


def ask(lm, pair):
    try:
        [answer] = lm.loglikelihood([Instance("loglikelihood", {}, tuple(pair), 0)], disable_tqdm=True)
        return [float(answer[0]), bool(answer[1])]
    except Exception as error:
        return refused(error)


def as_gguf_adds_up(lm, pair):
    context, continuation = pair
    tokens = lm.tok_encode(context + continuation)
    pieces = [lm.model._engine.piece(token, False) for token in tokens]
    if b"".join(pieces) == b" " + (context + continuation).encode():  # a space added by SentencePiece, not part of the text
        first = next(i for i, piece in enumerate(pieces) if piece)
        pieces[first] = pieces[first][1:]
    begins = [len(b"".join(pieces[:i]).decode("utf-8", "ignore")) for i in range(len(tokens))]
    first = next((i for i, begin in enumerate(begins) if begin >= len(context)), len(tokens))
    if first == 0:
        return "refused: the first token has no log-probability"
    if first == len(tokens):
        return [0.0, True]
    try:
        [score] = whole_texts.score([(tokens[:first], tokens[first:])])
    except Exception as error:
        return refused(error)
    return [score.log_likelihood, score.is_greedy]


lm = make(asked["model"], asked["arguments"])
said = {"pairs": [ask(lm, pair) for pair in asked["pairs"]]}
if asked["model"] == "harp":
    from harp import Session
    whole_texts = Session(lm.model, lm.options, n_ctx=1024)  # that client cuts nothing off
    without_bos = make("harp", {**asked["arguments"], "add_bos_token": False})
    said["as local-completions"] = [ask(without_bos, pair) for pair in asked["pairs"]]
    said["as gguf"] = [as_gguf_adds_up(lm, pair) for pair in asked["pairs"]]
print("SAID", json.dumps(said))
