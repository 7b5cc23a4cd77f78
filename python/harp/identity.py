"""What the results of a model depend on besides HARP's options: the content of its files, of adapters, and of other files that flags name.

Contents are identified by SHA-256. Hashes of large files are cached in the user's cache folder by path, size and times.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import _engine

#: variables of llama.cpp that do not change answers
HARMLESS = ("LLAMA_ARG_THREADS", "LLAMA_ARG_LOG_", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_PERF")


@functools.cache
def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, computed once per process.

    Raises:
        HarpError: ``io``, naming the file.
    """
    return _engine.content_hash(os.fspath(path))


def model_hash(path: str | os.PathLike) -> str | dict[str, str]:
    """SHA-256 of a model's file; for a split model that of each part, by name."""
    files = _engine.model_files(os.fspath(path))
    return sha256_of(files[0]) if len(files) == 1 else {Path(file).name: sha256_of(file) for file in files}


def named_files(texts: Iterable[str]) -> dict[str, str | dict[str, str]]:
    """Hashes of the files named in flags' values, by those names: FILE, FILE:SCALE, or several separated by commas."""
    found = {}
    for text in texts:
        items = _split(text)
        for name in {text, *items, *(item.rpartition(":")[0] for item in items)}:
            if name and _is_file(name):
                found[name] = model_hash(name)
    return dict(sorted(found.items()))


def _split(text: str) -> list[str]:
    """The items of a list with commas, as llama.cpp reads it. A grammar or a template is no list; its items name no files."""
    try:
        rows = list(csv.reader([text.replace("\n", " ").replace("\r", " ")]))
    except csv.Error:  # longer than csv allows
        return []
    return rows[0] if rows else []


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def llama_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """llama.cpp's flags that are given by environment variables, except those that do not change answers."""
    return {name: value for name, value in sorted(environment.items())
            if name.startswith("LLAMA_ARG_") and not name.startswith(HARMLESS)}
