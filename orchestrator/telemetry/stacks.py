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


@contextmanager
def told_on_signal() -> Iterator[None]:
    """SIGUSR1 tells the stacks of all threads, and of the running loop's tasks, while the block runs."""
    loop = asyncio.get_running_loop()

    def tell_tasks() -> None:
        for task in asyncio.all_tasks(loop):
            sys.stderr.write(f"task {task.get_name()}:\n")
            task.print_stack(file=sys.stderr)
        sys.stderr.flush()

    loop.add_signal_handler(signal.SIGUSR1, tell_tasks)
    # After it, and chained: the loop's own handler is called once the threads are told.
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True, chain=True)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        loop.remove_signal_handler(signal.SIGUSR1)
