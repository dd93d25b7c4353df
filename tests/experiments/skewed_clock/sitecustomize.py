"""Shift the clock of a node's Python processes by CLOCK_SKEW_S seconds, from its PYTHONPATH.

It shifts Python alone, in which this package reads clocks. libfaketime shifts the monotonic clock too, and Ray's C++
processes then wait for hours or not at all; a replaced `datetime` class breaks libraries written in C.
"""

import os
import time

SKEW_S = float(os.environ.get("CLOCK_SKEW_S", "0"))
_time, _time_ns = time.time, time.time_ns

time.time = lambda: _time() + SKEW_S
time.time_ns = lambda: _time_ns() + int(SKEW_S * 1e9)
