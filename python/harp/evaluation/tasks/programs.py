"""HumanEval: extracts programs from what a model wrote, and marks them by whether their tests pass. docs/TASKS.md says how they are confined.

Programs run in a separate process, under program_guard.py. lm-eval loads this file by its path, so it imports nothing next to it.
"""

import ast
import functools
import json
import re
import runpy
import secrets
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

without_thoughts = runpy.run_path(str(Path(__file__).with_name("thoughts.py")))["without_thoughts"]

LIMITS = {"seconds": 10, "megabytes": 1024, "processes": 16}  # for each program
START_SECONDS = 60  # time for the guard to start on a busy machine
# the order of a set of texts is the same each time, and so is whether a program that depends on it passes
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]

FENCED = re.compile(r"^[ \t]*(```|~~~)[`~ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*(\1)|\Z)", re.MULTILINE | re.DOTALL)
FUTURE = re.compile(r"^from __future__ import [^\n]*\n", re.MULTILINE)
CODE_BEGINS = re.compile(r"^(?:def |class |import |from [\w.]+ import\b|@)", re.MULTILINE)
MARK_BEHIND_CODE = re.compile(r"(?:```|~~~|<\|[a-z_]+\|>|</?[a-z_]+>)[^\n]*\n?\Z")  # in the last line: "return x```"


class CannotRun(OSError):
    """This machine has no way to confine a program. Nothing was run."""


def humaneval_completion(doc, results):
    """Protocol lm-eval: the text continues the prompt."""
    return _marks(doc, doc["prompt"] + results[0])


def humaneval_answer(doc, results):
    """Protocol generative: the text is an answer that contains the function."""
    return _marks(doc, program(doc["prompt"], doc["entry_point"], results[0]))


def _marks(doc, code):
    if code is None:
        return {"pass@1": 0, "answered": 0}
    return {"pass@1": int(run(f"{code}\n{doc['test']}\ncheck({doc['entry_point']})\n") == "passed"), "answered": 1}


def program(prompt, name, text):
    """The program in an answer to a prompt that asks to complete the function `name`; None if there is none.

    It is the first fenced block that defines the function, else the first block that does not name another language, else text that begins
    like code. What precedes the function in the prompt (imports, helpers) is put before it. A block that has only the function's body
    continues the prompt. Where nothing marks the end of the code, what follows it is left out. Thoughts are no answer.
    """
    text = without_thoughts(text).replace("\ufeff", "").replace("\r\n", "\n")
    defines = re.compile(rf"^([ \t]*)(?:async[ ]+)?def[ ]+{re.escape(name)}\b", re.MULTILINE)
    blocks = [code if end else _code_alone(code, defines) for _, language, code, end in FENCED.findall(text)
              if language.lower() in ("", "python", "python3", "py")]
    block = next((code for code in blocks if defines.search(code)), blocks[0] if blocks else None)
    if block is None and (begin := CODE_BEGINS.search(text)):
        block = _code_alone(text[begin.start():].split("\n```")[0], defines)
    if block is None and re.match(r"[ \t]+\S", text):
        block = text
    if block is None or not block.strip():
        return None
    if found := defines.search(block):
        before = prompt[:next(defines.finditer(prompt)).start()] if defines.search(prompt) else ""
        code = _dedented(block, found[1])
        return "".join(FUTURE.findall(code)) + before + "\n" + FUTURE.sub("\n", code)  # they must be first
    if CODE_BEGINS.match(block):  # it defines other functions, but not the one asked for
        return None
    return prompt + (block if block[:1] in " \t" else "".join(f"    {line}\n" for line in block.splitlines()))


def _code_alone(text, defines):
    """The lines from the first on that are a program, without marks or a remark behind them. All of them if no such lines define what the text does."""
    lines = text.splitlines(keepends=True)
    for end in range(len(lines), 0, -1):
        code = "".join(lines[:end])
        unmarked = MARK_BEHIND_CODE.sub("\n", code)
        if found := next(filter(_is_python, dict.fromkeys((code, unmarked))), None):
            return found if defines.search(found) or not defines.search(text) else text
    return text


def _is_python(code):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in its strings
        try:
            ast.parse(textwrap.dedent(code))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _dedented(block, indent):
    return "\n".join(line.removeprefix(indent) for line in block.splitlines()) + "\n"


def run(source, **limits):
    """Runs a confined program. Returns "passed" if it reaches its end, else why it did not. limits: replace those of LIMITS.

    Raises:
        CannotRun: if no namespaces can be created.
    """
    guard = [sys.executable, "-s", "-S", str(Path(__file__).with_name("program_guard.py"))]
    with tempfile.TemporaryDirectory(prefix="harp-program-") as folder:
        asked = {"source": source, "token": secrets.token_hex(16), "folder": folder, **LIMITS, **limits}
        try:
            done = subprocess.run([*NAMESPACES, "--", *guard], input=json.dumps(asked), capture_output=True, text=True, cwd="/",
                                  env=ENVIRONMENT, timeout=3 * asked["seconds"] + START_SECONDS,
                                  start_new_session=True, check=False)
        except subprocess.TimeoutExpired:
            return "took too long"
        except OSError as error:
            raise _cannot(f"{NAMESPACES[0]}: {error.strerror}") from None
    try:
        said = json.loads(done.stdout)
    except ValueError:
        raise _cannot(done.stderr.strip()[-300:] or f"the guard ended with {done.returncode}") from None
    if "refused" in said:
        raise _cannot(said["refused"])
    return said["outcome"]


@functools.cache
def check():
    """Raises CannotRun if this machine cannot run programs."""
    if (outcome := run("")) != "passed":
        raise _cannot(outcome)


def _cannot(why):
    return CannotRun(f"generated programs cannot be run here: {why}. They run without network, without files to write and out of sight of other "
                     "processes, or not at all: Linux 5.12 or newer, `unshare` of util-linux, and user namespaces are needed (a container or "
                     "AppArmor may forbid them)")
