"""
What everybody waits for, told on a signal: a process that hangs leaves nothing else to look at.

    kill -USR1 <pid>

writes the stack of each thread, and of each asyncio task where there is a loop, to the log's stream.
The threads are told by C code, also when the loop or the interpreter's lock is stuck.
"""

import asyncio
import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def threads_told_on_signal(stream: TextIO | None = None) -> Iterator[None]:
    """
    SIGUSR1 tells the stacks of all threads while the block runs, and does not end the process.

    Args:
        stream: Where to; the error stream by default. It needs a file descriptor.
    """
    faulthandler.register(signal.SIGUSR1, file=stream or sys.stderr, all_threads=True, chain=True)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGUSR1)


@contextmanager
def tasks_told_on_signal(stream: TextIO | None = None) -> Iterator[None]:
    """The same for the tasks of the running loop; to be entered before `threads_told_on_signal`."""
    loop = asyncio.get_running_loop()

    def tell() -> None:
        where = stream or sys.stderr
        for task in asyncio.all_tasks(loop):
            where.write(f"task {task.get_name()}:\n")
            task.print_stack(file=where)
        where.flush()

    loop.add_signal_handler(signal.SIGUSR1, tell)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
