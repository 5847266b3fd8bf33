"""A group of options is declared once, stands in every command that takes it, and makes what a job needs."""

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from ofqctl.cli import options
from ofqctl.cli.app import app
from ofqctl.cli.groups import expanded, flag, given, group, option


@group("Fruit")
class Basket:
    apples: int = option("N", "How many apples.", default=2, min=1)
    kinds: list[str] | None = option("NAME", "Which.", "--kind")
    ripe: bool = flag("Ripe ones only.", "--ripe")

    def words(self):
        return f"{self.apples} apples"


@group("Fruit")
class LargeBasket(Basket):
    pears: int = option("N", "How many pears.", default=...)


def told(*arguments):
    seen = []

    def eat(name: str, basket: LargeBasket, *, fast: bool = False) -> None:
        seen.append((name, basket, fast))

    program = typer.Typer()
    program.command()(expanded(eat))
    ended = CliRunner().invoke(program, arguments)
    return ended, seen


def test_a_command_gets_the_group_in_place_of_its_options():
    ended, seen = told("me", "--apples", "3", "--kind", "a", "--kind", "b", "--pears", "4", "--ripe", "--fast")
    assert ended.exit_code == 0, ended.output
    assert seen == [("me", LargeBasket(apples=3, kinds=["a", "b"], ripe=True, pears=4), True)]
    assert seen[0][1].words() == "3 apples"


def test_options_keep_defaults_limits_and_the_need_for_a_value():
    assert told("me", "--pears", "1")[1] == [("me", LargeBasket(pears=1), False)]
    assert told("me", "--pears", "1", "--apples", "0")[0].exit_code == 2
    assert told("me")[0].exit_code == 2


def test_the_options_stand_under_the_heading_of_their_group():
    def eat(basket: Basket) -> None: ...

    program = typer.Typer()
    program.command()(expanded(eat))
    panels = {one.name: one.rich_help_panel for one in get_command(program).params if one.name != "help"}
    assert {name: panels[name] for name in ("apples", "kinds", "ripe")} == dict.fromkeys(
        ("apples", "kinds", "ripe"), "Fruit"
    )


def test_given_are_the_options_with_other_values_than_the_defaults():
    assert given(Basket()) == []
    assert given(Basket(kinds=["a"], apples=3)) == ["--apples", "--kind"]


def test_two_groups_with_one_option_are_refused_while_the_program_is_made():
    def eat(basket: Basket, other: LargeBasket) -> None: ...

    with pytest.raises(TypeError, match="eat: several groups have the options apples, kinds, ripe"):
        expanded(eat)


@pytest.mark.parametrize("name", ["quantize", "train", "evaluate", "predict", "export", "sensitivity"])
def test_every_command_that_loads_a_float_model_has_all_options_of_models(name):
    names = {one.name for one in get_command(app).commands[name].params}
    assert names >= set(options.ModelOptions.__dataclass_fields__)


@pytest.mark.parametrize("name", ["quantize", "train", "evaluate", "export", "analyze-oscillation"])
def test_every_command_that_reads_labelled_images_has_all_options_of_them(name):
    names = {one.name for one in get_command(app).commands[name].params}
    assert names >= set(options.DataOptions.__dataclass_fields__)
