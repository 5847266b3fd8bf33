"""Write the JSON schemas of results under docs/schemas/; ``--check`` only says whether they are up to date."""

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from ofqctl.cli.failures import FailureDocument
from ofqctl.diagnosis.comparison import Comparison
from ofqctl.diagnosis.result import Analysis

FOLDER = Path(__file__).resolve().parent / "schemas"
MODELS: dict[str, type[BaseModel]] = {
    "analyze-oscillation": Analysis,
    "compare": Comparison,
    "failure": FailureDocument,
}


def schema(name: str) -> str:
    """The text of a schema file."""
    return json.dumps(MODELS[name].model_json_schema(mode="serialization"), indent=1) + "\n"


def main() -> int:
    """Write the files, or check them."""
    stale = [name for name in MODELS if not _file(name).is_file() or _file(name).read_text() != schema(name)]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"{_file(name)}: out of date; `python {Path(__file__).name}` in docs/ writes it", file=sys.stderr)
        return int(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        _file(name).write_text(schema(name), encoding="utf-8")
    return 0


def _file(name: str) -> Path:
    return FOLDER / f"{name}.json"


if __name__ == "__main__":
    sys.exit(main())
