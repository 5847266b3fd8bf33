"""Run a command on a disk that is full at a random moment: how often it was refused, or had enough.

``python full_disk.py quantize --moments 3``

Ends with 77 where no disk can be mounted.
"""

import sys
import tempfile
from pathlib import Path

from clone import options, program, show

if __name__ == "__main__":
    asked, full_disk = options(__doc__, "moments"), program("tests.artifact.full_disk")
    with tempfile.TemporaryDirectory() as folder:
        results = full_disk.apart(asked.moments, asked.seed, Path(folder), asked.what)
    print(results or "a disk can be mounted by root only", file=sys.stderr)
    if results is None:
        sys.exit(77)
    show(results[asked.what], ("refused", "had enough"), "moments")
