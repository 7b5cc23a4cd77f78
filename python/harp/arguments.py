"""Checks of arguments that the engine would misread, or refuse with a less helpful message."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable

import numpy as np

from .errors import HarpError

INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1
FLOAT32_MAX = 3.4e38  #: a little less than the greatest


def utf8_text(name: str, value: str) -> str:
    """One text, which the engine reads as UTF-8.

    Raises:
        TypeError: if it is none; HarpError: ``invalid_input``, naming the argument and the lone surrogate in it.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: {_shown(value)}; allowed: a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise HarpError(f"{name}: {value[error.start]!r} at index {error.start} is half of a surrogate pair; allowed: text that UTF-8 can "
                        "encode", "invalid_input") from None
    return value


def strings(name: str, value: str | Iterable[str]) -> list[str]:
    """A list of texts. A single text is a list of one, not of its letters.

    Raises:
        TypeError: naming the argument, if it is neither; HarpError: as utf8_text().
    """
    if isinstance(value, str):
        return [utf8_text(name, value)]
    return texts(name, value, "a text or a list of texts")


def texts(name: str, value: Iterable[str], allowed: str) -> list[str]:
    """A list of texts, for arguments where a single text makes no sense.

    Raises:
        TypeError: naming the argument and what is allowed; HarpError: as utf8_text().
    """
    values = items(name, value, allowed)
    for index, one in enumerate(values):
        if not isinstance(one, str):
            raise TypeError(f"{name}[{index}]: {_shown(one)}; allowed: {allowed}")
        utf8_text(f"{name}[{index}]", one)
    return values


def items(name: str, value: Iterable, allowed: str) -> list:
    """A list of an iterable's items. A text, bytes or a mapping is not accepted.

    Raises:
        TypeError: naming the argument and what is allowed.
    """
    is_one = getattr(value, "shape", None) == ()  # an array of one number, which has no items
    if isinstance(value, (str, bytes, bytearray, dict)) or not isinstance(value, Iterable) or is_one:
        raise TypeError(f"{name}: {_shown(value)}; allowed: {allowed}")
    return list(value)


def whole(name: str, value: int, least: int, most: int, code: str = "invalid_option") -> int:
    """A whole number in a range.

    Raises:
        TypeError: if it is not a whole number; HarpError: naming the argument, value and range.
    """
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:  # also of arrays, which have the method and no value
        raise TypeError(f"{name}: {_shown(value)}; allowed: a whole number, {least}..{most}") from None
    if not least <= number <= most:
        raise HarpError(f"{name}: {number}; allowed: {least}..{most}", code)
    return number


def truth(name: str, value: bool) -> bool:
    """True or False, also as 1 or 0. A word such as "off" would count as true.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(value, (bool, np.bool_, numbers.Integral)) or value not in (True, False):
        raise TypeError(f"{name}: {_shown(value)}; allowed: True, False")
    return bool(value)


def number(name: str, value: float, least: float, most: float, *, above: bool = False) -> float:
    """A real number in a range, whose least value is left out with ``above``.

    Raises:
        TypeError: if it is not a real number; HarpError: naming the argument, value and range.
    """
    range = f"> {least:g}, at most {most:g}" if above else f"{least:g}..{most:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: {_shown(value)}; allowed: a number, {range}")
    if not least <= value <= most or (above and value == least):  # also refuses nan
        raise HarpError(f"{name}: {value}; allowed: {range}", "invalid_option")
    return float(value)


def token_ids(name: str, value: Iterable[int], n_vocab: int = INT32_MAX, allowed: str = "token ids") -> list[int]:
    """Token ids, checked against the vocabulary where the engine would report an error too late.

    Raises:
        TypeError: if it is not a sequence of whole numbers; HarpError: naming the argument, index, value and range.
    """
    ids = items(name, value, allowed)
    return [whole(f"{name}[{index}]", id, 0, n_vocab - 1, "invalid_input") for index, id in enumerate(ids)]


def _shown(value: object) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:60] + '...'} ({type(value).__name__})"
