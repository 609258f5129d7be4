"""Ctrl-C for all Python tests.

A shell without job control starts what it puts into the background with an ignored SIGINT. Programs inherit that, and
tests that interrupt them would wait for what never happens.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
