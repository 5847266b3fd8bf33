"""As many epochs as fit into a time: the same training as one that was asked for so many."""

import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofqctl.artifact import RunConfig
from ofqctl.data import DataSpec
from ofqctl.errors import RecipeError
from ofqctl.jobs import pacing
from ofqctl.jobs.train import recorded_request, train
from ofqctl.recipe.training import Phase, Training
from ofqctl.training import Engine

STEPS = 6  # of an epoch of the 48 images


@pytest.fixture
def epochs_take(monkeypatch):
    """Lets an epoch take so many seconds, as far as the time budget knows."""

    def take(seconds: float) -> None:
        monkeypatch.setattr(pacing, "seconds_per_step", lambda _engine: seconds / STEPS)

    return take


def weights_of(request) -> bytes:
    return (request.output / "model.safetensors").read_bytes()


def epochs_of(request) -> list[int]:
    recipe = RunConfig.model_validate_json((request.output / "config.json").read_text()).quantization_config.recipe
    return [phase.epochs for phase in recipe.training.phases]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.data())
def test_every_phase_gets_its_share_of_fewer_epochs(planned, data):
    settings = Training(phases=tuple(Phase(epochs=count, warmup_epochs=count // 3) for count in planned))
    epochs = data.draw(st.integers(len(planned), sum(planned)))
    got = settings.shortened(epochs).phases
    assert sum(phase.epochs for phase in got) == epochs
    for count, phase in zip(planned, got, strict=True):
        assert 1 <= phase.epochs <= count
        assert phase.warmup_epochs <= phase.epochs
    assert settings.shortened(sum(planned)) == settings


def test_without_a_floor_shares_are_off_by_less_than_one():
    settings = Training(phases=(Phase(epochs=200), Phase(epochs=100)))
    assert [phase.epochs for phase in settings.shortened(50).phases] == [33, 17]


def test_enough_time_changes_nothing(request_for):
    plain, timed = request_for("plain"), request_for("timed", time_budget=10_000.0)
    train(plain)
    seen = []
    train(timed, lambda work, _done, _total: seen.append(work))
    assert weights_of(timed) == weights_of(plain)
    assert any(work.startswith("3 of 3 epochs fit into the time, about ") for work in seen)


def test_less_time_is_training_for_fewer_epochs(request_for, epochs_take):
    epochs_take(400.0)
    timed = request_for("timed", sets=["training.phases.0.epochs=4"], time_budget=1000.0)
    train(timed)
    assert epochs_of(timed) == [1, 1]
    asked = request_for("asked", sets=["training.phases.0.epochs=1"])
    train(asked)
    assert weights_of(timed) == weights_of(asked)


def test_images_that_are_measured_take_time(request_for, epochs_take, validation_folder):
    epochs_take(100.0)  # and a third of 97 / 8 steps more, 67
    timed = request_for("timed", val_data=DataSpec(str(validation_folder)), time_budget=480.0)
    train(timed)
    assert epochs_of(timed) == [1, 1]


def test_a_resumed_training_has_the_epochs_that_it_began_with(request_for, epochs_take):
    epochs_take(400.0)
    whole = request_for("whole", time_budget=1000.0)
    train(whole)
    for name, again in (
        ("same", lambda it: replace(it, resume="auto")),
        ("alone", lambda it: recorded_request(it.output)),
    ):
        stopped = request_for(name, time_budget=1000.0)

        def stop(row, _total):
            if row["step"] == 8:
                raise MemoryError

        with pytest.raises(MemoryError):
            train(stopped, on_step=stop)
        epochs_take(1.0)  # then all would fit
        train(again(stopped))
        assert weights_of(stopped) == weights_of(whole)
        epochs_take(400.0)


def test_too_little_time_for_an_epoch_of_each_phase_is_refused(request_for, epochs_take):
    epochs_take(400.0)
    request = request_for(time_budget=700.0)
    with pytest.raises(
        RecipeError, match=r"2 epochs, one for each phase, take about 800 s, and \d+ s are left"
    ) as caught:
        train(request)
    assert "or more" in caught.value.hint
    assert not (request.output / "config.json").exists()


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_time_of_nothing_is_refused(request_for, seconds):
    with pytest.raises(RecipeError, match="more than 0 are needed"):
        train(request_for(time_budget=seconds))


def test_stages_ahead_of_training_take_at_most_half(request_for, epochs_take):
    epochs_take(0.1)
    sets = ["ptq=[{stage: reconstruct, iterations: 1000000, views: 8}]", "training.phases=[{epochs: 1}]"]
    result = train(request_for(sets=sets, time_budget=4.0))
    assert any("the time budget allowed" in note for note in result.notes)
    assert len(result.training.epochs) == 1


def test_a_signal_while_steps_are_measured_ends_the_program(request_for, monkeypatch):
    def interrupted(engine):
        for number, row in enumerate(steps(engine)):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            yield row

    steps = Engine.steps
    monkeypatch.setattr(Engine, "steps", interrupted)
    request = request_for(time_budget=1000.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have left out
    try:
        with pytest.raises(KeyboardInterrupt):
            train(request)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (request.output / "last.pt").exists()
