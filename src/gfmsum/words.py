"""Command lines of ``key=value`` words: how they are read, and what a mistake costs."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from gfmsum.sensors import unknown


def command(
    arguments: Sequence[str],
    text: str | None,
    options: Collection[str],
    answer: Callable[[Sequence[str], Mapping[str, str]], str],
) -> int:
    """Print help or an answer, or one line on what is wrong.

    Args:
        arguments: as typed.
        text: what ``--help`` prints.
        options: the keys there are.
        answer: from file names and values by key to what is printed; its ValueError or OSError is
            the user's mistake.

    Returns:
        The exit code, 0 or 2.
    """
    if {"-h", "--help"} & set(arguments):
        print(text, end="")
        return 0
    try:
        print(answer(*read_words(arguments, options)))
    except (OSError, ValueError) as error:
        print(f"gfmsum: {error}", file=sys.stderr)
        return 2
    return 0


def read_words(
    arguments: Sequence[str], options: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Command-line words as file names and, of ``key=value``, the values by key.

    Raises:
        ValueError: for a key that is not in ``options``, is there twice or has no value.
    """
    files, values = list[str](), dict[str, str]()
    for word in arguments:
        if not (match := re.fullmatch(r"(\w+)=(.*)", word, re.DOTALL)):
            files.append(word)
            continue
        key, value = match.groups()
        if key not in options:
            raise ValueError(unknown("option", key, options))
        if key in values or not value:
            raise ValueError(f"{word!r}: give {key} once, with a value")
        values[key] = value
    return files, values


def read_number(key: str, text: str, below: float = math.inf) -> float:
    """The value of ``key=text``, which must lie between 0 and ``below``."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < below:
        limit = "above 0" if below == math.inf else f"between 0 and {below:g}"
        hint = "; 0.01 is one point" if key in ("margin", "effect") else ""
        raise ValueError(f"{key}={text} must be a number {limit}{hint}")
    return number
