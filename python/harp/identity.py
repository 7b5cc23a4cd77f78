"""What the results of a model depend on, apart from HARP's options: contents of all its files, of adapters and whatever else flags name.

Contents are known by their SHA-256. Of large files it is kept in the user's cache folder by path, size and times, so that asking again is quick.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import _engine

#: variables of llama.cpp that change no answer
HARMLESS = ("LLAMA_ARG_THREADS", "LLAMA_ARG_LOG_", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_PERF")


@functools.cache
def sha256_of(path: str | os.PathLike) -> str:
    """Of a file's content; looked at once in a process.

    Raises:
        HarpError: ``io``, naming the file.
    """
    return _engine.content_hash(os.fspath(path))


def model_hash(path: str | os.PathLike) -> str | dict[str, str]:
    """SHA-256 of a model's file; of a split model each part's, by name."""
    files = _engine.model_files(os.fspath(path))
    return sha256_of(files[0]) if len(files) == 1 else {Path(file).name: sha256_of(file) for file in files}


def named_files(texts: Iterable[str]) -> dict[str, str | dict[str, str]]:
    """Hashes of the files that flags' values name, by their names there: FILE, FILE:SCALE, or several with commas between."""
    found = {}
    for text in texts:
        [items] = list(csv.reader([text])) or [[]]
        for name in {text, *items, *(item.rpartition(":")[0] for item in items)}:
            if name and Path(name).is_file():
                found[name] = model_hash(name)
    return dict(sorted(found.items()))


def llama_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """llama.cpp's flags that are given by environment variables, without those that change no answer."""
    return {name: value for name, value in sorted(environment.items())
            if name.startswith("LLAMA_ARG_") and not name.startswith(HARMLESS)}
