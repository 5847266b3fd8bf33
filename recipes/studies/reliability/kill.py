"""Kill a command at random moments: how often that left the old state, the new one, or an epoch between.

``python kill.py quantize --moments 10``
"""

import sys
import tempfile
from pathlib import Path

from clone import options, program, show

if __name__ == "__main__":
    asked, kill = options(__doc__, "moments"), program("tests.artifact.kill")
    with tempfile.TemporaryDirectory() as folder:
        results = kill.kill(asked.moments, asked.seed, Path(folder), asked.what)
    print(results, file=sys.stderr)
    show(results[asked.what], ("old", "new", "between"), "moments")
