"""The words of a command line: options anywhere among files and key=value, and which word is which."""

import argparse
from collections.abc import Sequence


def parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments, options standing anywhere: `CONFIG key=value --nproc 2 key=value` too.

    A verb with verbs of its own takes its words in order, since their options are another parser's.
    """
    if parser._subparsers is not None:
        return parser.parse_args(words)
    return parser.parse_intermixed_args(words)


def split_overrides(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (positional values, key=value overrides) of a mixed argument list."""
    return [i for i in items if not _is_override(i)], [i for i in items if _is_override(i)]


def _is_override(item: str) -> bool:
    key, separator, _ = item.partition("=")
    return bool(separator) and "/" not in key and "\\" not in key
