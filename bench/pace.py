"""Arrivals at random, so many a second: for an open loop, in which nobody waits for an answer before asking again.

`python pace.py RATE SECONDS KINDS` writes a record to standard output at the time of each arrival: the kind, and the
time at which it was to be (`time.monotonic`, which all processes share), so that no delay is left out.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import time

RECORD = struct.Struct("<dd")


def main() -> None:
    rate, seconds, kinds = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    due = time.monotonic() + 0.1
    until = due + seconds
    while due < until:
        wait_s = due - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        os.write(1, RECORD.pack(random.randrange(kinds), due))
        due += random.expovariate(rate)


if __name__ == "__main__":
    main()
