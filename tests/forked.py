"""Processes that start in milliseconds: forked from a server that imported the heavy packages once a session."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

PRELOADED = ["tests.preloaded"]


def context() -> Any:
    """Return the multiprocessing context of that server; conftest.py has loader workers use it as well."""
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(PRELOADED)
    return chosen


def call_each(function: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[Any]:
    """Return what the function returns for each tuple of arguments, each in a process of its own, at the same time."""
    with ProcessPoolExecutor(len(arguments), mp_context=context()) as pool:
        return [future.result() for future in [pool.submit(function, *given) for given in arguments]]
