"""Damage files of one kind at random and send each through a command: how often it was refused, or gave the same.

``python damages.py sealed --count 200``
"""

import sys

from clone import options, program, show

if __name__ == "__main__":
    asked, harness = options(__doc__, "count"), program("tests.fuzz.harness")
    report = harness.fuzz(asked.count, asked.seed, asked.what)
    print(report, file=sys.stderr)
    show(report.total, ("refused", "same", "told", "other"), "damages")
