"""The schemas in the docs are those of the program, and no command is without one."""

import json
from pathlib import Path

import jsonschema
import pytest
from typer.main import get_command

from ofqctl.cli.app import app
from ofqctl.recipe import catalogue
from ofqctl.results.documents import DOCUMENTS, FAILURE, schema_file, schema_of

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def commands(group, above=()):
    """The names of all commands that have --json."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))
        elif any("--json" in parameter.opts for parameter in command.params):
            yield " ".join((*above, name))


def test_every_command_with_json_has_a_schema_and_no_other():
    assert {*commands(get_command(app)), FAILURE} == set(DOCUMENTS)
    assert {path.name for path in SCHEMAS.iterdir()} == {schema_file(command) for command in DOCUMENTS}


@pytest.mark.parametrize("command", DOCUMENTS)
def test_the_schema_in_the_docs_is_that_of_the_program(command):
    written = json.loads((SCHEMAS / schema_file(command)).read_text(encoding="utf-8"))
    assert written == schema_of(command), "python docs/generate_schemas.py writes it"
    jsonschema.Draft202012Validator.check_schema(written)


@pytest.mark.parametrize("command", sorted(set(DOCUMENTS) - {FAILURE}))
def test_every_document_names_its_command_and_version(command):
    for document in DOCUMENTS[command]:
        assert document.model_fields["command"].default == command
        assert document.model_fields["format"].default == 1


@pytest.mark.parametrize("name", catalogue.names())
def test_every_shipped_recipe_is_shown_as_documented(ofqctl, name):
    assert ofqctl("recipe", "show", name, "--json").json["name"] == name
