"""The questions of examples that a journal tells of, from the data files that they were asked from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from . import tasks
from .report_data import Column, Pair


def question_file(column: Column) -> tuple[str, str | None]:
    """The file with the questions, relative to a data folder, and its SHA-256; None where the journal does not say."""
    name = tasks.TASKS[_task(column)].files[column.config["protocol"]][0] if _task(column) in tasks.TASKS else ""
    return name, column.config.get("data_sha256", {}).get(name)


class Questions:
    """Looks in some data folders for the very files that a journal names by their SHA-256."""

    def __init__(self, folders: Iterable[str]):
        self._folders = [Path(folder) for folder in folders]
        self._texts: dict[tuple[str, str, str], list[str] | None] = {}

    def of(self, column: Column) -> list[str] | None:
        """By the number of an example; None where no folder has the file."""
        file, sha256 = question_file(column)
        if sha256 is None:
            return None
        key = _task(column), column.config["protocol"], sha256
        if key not in self._texts:
            folder = next((folder for folder in self._folders if _sha256(folder / file) == sha256), None)
            self._texts[key] = None if folder is None else _read(*key[:2], folder)
        return self._texts[key]

    def add_to(self, pairs: Iterable[Pair]) -> None:
        """To the examples of the pairs that flipped."""
        for pair in pairs:
            flips = pair.better + pair.worse
            texts = self.of(pair.column) if flips else None
            for flip in flips if texts else []:
                flip.question = texts[int(flip.id)]


def _task(column: Column) -> str:
    return column.task.partition(" ")[0]  # the protocol is behind it


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _read(name: str, protocol: str, folder: Path) -> list[str] | None:
    try:
        task = tasks.load(name, protocol, folder, run_generated_code=tasks.TASKS[name].runs_code)  # which is read, not run
    except (OSError, ValueError):  # such as a folder without the examples that go before each question
        return None
    return [str(task.doc_to_text(document)) for document in task.eval_docs]
