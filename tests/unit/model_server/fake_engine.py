"""
An engine without a model, as a process: `python fake_engine.py [--ignore-sigterm] [--exit N]`.

Starts a child that outlives it (as vLLM's EngineCore does) and a grandchild, says their ids, and
waits. Everything ignores SIGTERM when told to.
"""

import os
import signal
import sys
import time


def _fork_and_wait(generations: int) -> None:
    """Say the own id, start the next generation, and wait."""
    sys.stdout.write(f"pid {os.getpid()}\n")
    sys.stdout.flush()
    if generations and os.fork() == 0:
        os.setpgrp()  # a group of its own, so that killing the engine's group is not enough
        _fork_and_wait(generations - 1)
    is_eldest = generations == 2
    if "--exit" in sys.argv and is_eldest:
        time.sleep(0.2)  # until the family is there
        os._exit(int(sys.argv[sys.argv.index("--exit") + 1]))
    while True:
        time.sleep(60)


if __name__ == "__main__":
    if "--ignore-sigterm" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _fork_and_wait(2)
