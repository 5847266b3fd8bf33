"""Write the JSON schemas of results under docs/schemas/; ``--check`` only says whether they are up to date."""

import json
import sys
from pathlib import Path

from ofqctl.results.documents import DOCUMENTS, schema_file, schema_of

FOLDER = Path(__file__).resolve().parent / "schemas"


def main() -> int:
    """Write the files, or check them; files of no command are removed."""
    wanted = {FOLDER / schema_file(command): json.dumps(schema_of(command), indent=1) + "\n" for command in DOCUMENTS}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    strange = sorted(set(FOLDER.glob("*.json")) - set(wanted))
    if "--check" in sys.argv[1:]:
        for path in (*stale, *strange):
            print(f"{path}: out of date; `python {Path(__file__).name}` in docs/ writes it", file=sys.stderr)
        return int(bool(stale or strange))
    FOLDER.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    for path in strange:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
