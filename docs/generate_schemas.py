"""Write the JSON schemas of results under docs/schemas/; ``--check`` only says whether they are up to date."""

import json
import sys
from pathlib import Path

from generating import keep

from ofqctl.results.documents import DOCUMENTS, schema_file, schema_of

FOLDER = Path(__file__).resolve().parent / "schemas"


def main() -> int:
    """Write the files, or check them; files of no command are removed."""
    wanted = {FOLDER / schema_file(command): json.dumps(schema_of(command), indent=1) + "\n" for command in DOCUMENTS}
    return keep(wanted, FOLDER.glob("*.json"), __file__)


if __name__ == "__main__":
    sys.exit(main())
