"""The questions of a journal's examples, from the data files that were run."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from . import tasks
from .report_data import Column, Pair


def question_file(column: Column) -> tuple[str, str | None]:
    """The file with the questions, relative to a data folder, and its SHA-256; None if the journal does not have it."""
    name = tasks.TASKS[_task(column)].files[column.config["protocol"]][0] if _task(column) in tasks.TASKS else ""
    return name, column.config.get("data_sha256", {}).get(name)


class Questions:
    """Searches data folders for the files that a journal identifies by SHA-256."""

    def __init__(self, folders: Iterable[str]):
        self._folders = [Path(folder) for folder in folders]
        self._texts: dict[tuple[str, str, str], list[str] | None] = {}

    def of(self, column: Column) -> list[str] | None:
        """The questions by example number; None if no folder has the file."""
        file, sha256 = question_file(column)
        if sha256 is None:
            return None
        key = _task(column), column.config["protocol"], sha256
        if key not in self._texts:
            folder = next((folder for folder in self._folders if _sha256(folder / file) == sha256), None)
            self._texts[key] = None if folder is None else _read(*key[:2], folder)
        return self._texts[key]

    def add_to(self, pairs: Iterable[Pair]) -> None:
        """Adds the questions to those examples of the pairs that flipped."""
        for pair in pairs:
            flips = pair.better + pair.worse
            texts = self.of(pair.column) if flips else None
            for flip in flips if texts else []:
                flip.question = texts[int(flip.id)]


def _task(column: Column) -> str:
    return column.task.partition(" ")[0]  # without the protocol that follows it


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _read(name: str, protocol: str, folder: Path) -> list[str] | None:
    try:
        task = tasks.load(name, protocol, folder, run_generated_code=tasks.TASKS[name].runs_code)  # the task is only read, so no code is run
    except (OSError, ValueError):  # for example no file with the worked examples for the prompt
        return None
    return [str(task.doc_to_text(document)) for document in task.eval_docs]
