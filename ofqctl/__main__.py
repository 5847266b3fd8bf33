"""``python -m ofqctl``."""

import sys

from ofqctl.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
