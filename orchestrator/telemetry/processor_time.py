"""How much processor time a process has used."""

import time


def process_cpu_s(pid: int) -> float:
    """
    Processor seconds of a process, all its threads, to the nanosecond.

    The counters in /proc are sampled by the timer's tick on many kernels: a process that is woken by
    timers is charged whole ticks that it did not use. The scheduler's own clock is exact, and asking
    it takes a twentieth of the time.

    Raises:
        OSError: If there is no such process.

    Source:
        clock_getcpuclockid(3): the clock's number is made from the process's.
    """
    return time.clock_gettime((~pid << 3) | 2)
