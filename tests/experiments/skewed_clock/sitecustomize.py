"""Found on a node's PYTHONPATH, it sets the clock of all its Python processes off by CLOCK_SKEW_S seconds.

Only in Python, where our own readings of clocks are made. libfaketime shifts the monotonic clock too, and Ray's C++
processes then wait for hours or not at all; a class in the place of `datetime` breaks libraries written in C.
"""

import os
import time

SKEW_S = float(os.environ.get("CLOCK_SKEW_S", "0"))
_time, _time_ns = time.time, time.time_ns

time.time = lambda: _time() + SKEW_S
time.time_ns = lambda: _time_ns() + int(SKEW_S * 1e9)
