"""The sections of the page on changes over optimizer steps and checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from ofqctl.diagnosis.findings import ROLE_WORDS, percent
from ofqctl.oscillation import ROLES
from ofqctl.reports import page
from ofqctl.reports.plots import Line, curves, pairs, path
from ofqctl.reports.roles import COLOURS, DRAWN_BITS, drawn
from ofqctl.results.analyze_oscillation import Change, Live, Report

_TOP = 12  # number of rows of a table


def training_section(report: Report) -> str:
    """The course of training: by role if the tracker recorded a history, else totals of the epochs."""
    history = report.history
    if history is None:
        return _epochs(report)
    marks, low = _phase_marks(report), drawn(report)
    roles = {role: history.roles[role] for role in history.roles if role in low}
    steps = [float(step) for step in history.steps]

    def lines(key: str, factor: float) -> list[Line]:
        return [
            Line(COLOURS[role][0], [factor * v for v in getattr(one, key)], COLOURS[role][1])
            for role, one in roles.items()
        ]

    def plot(key: str, factor: float, label: str, **options: bool) -> str:
        return curves(steps, lines(key, factor), x_label="optimizer step", y_label=label, marks=marks, **options)

    plots = [
        ("Oscillating weights", plot("oscillating", 100.0, "% of the weights"), ""),
        ("Codes that change", plot("flips_per_step", 100.0, "% of the codes in a step"), ""),
        (
            "Grid steps",
            plot("step", 1.0, "mean grid step, relative to the first", from_zero=False),
            "StatsQ computes them from the weights, LSQ learns them.",
        ),
    ]
    plots += _moved(report)
    plots += _annealing(report)
    lead = "Records of the tracker over the whole training, by role."
    if len(low) < len(history.roles):
        lead += f" Layers of more than {DRAWN_BITS} bits are omitted."
    key = page.legend(page.Key(ROLE_WORDS[role], *COLOURS[role]) for role in roles)
    return page.section("Over training", lead, key, page.cards(plots))


def paths_section(report: Report) -> str:
    """Trajectories of sampled weights across their thresholds."""
    plots = []
    for one in report.paths:
        steps = range(one.first_step, one.first_step + len(one.code))
        title = f"{one.name}, weight {one.index}"
        plots.append((title, path(steps, one.position, one.code, one.thresholds), ""))
    key = page.legend((page.Key("latent weight", "c1"), page.Key("code", "muted"), page.Key("threshold", "c2", True)))
    lead = "The recorded weights that flipped most: float values and codes."
    return page.section("Single weights", lead, key, page.cards(plots)) if plots else ""


def changes_section(changes: Sequence[Change], report: Report) -> str:
    """Changes from checkpoint to checkpoint."""
    if not changes:
        return ""
    columns = [role for role in ROLES if any(role in change.roles for change in changes)]
    scale = max(change.roles[role] for change in changes for role in drawn(report))
    rows: dict[str, Mapping[str, tuple[float, str]]] = {}
    for change in changes:
        shares = {**{str(role): share for role, share in change.roles.items()}, "all": change.codes_changed}
        pair = " → ".join(name.rstrip("/").rpartition("/")[2] for name in (change.before, change.after))
        rows[pair] = {name: (share / (scale or 1.0), percent(share)) for name, share in shares.items()}
    last = sorted(changes[-1].layers, key=lambda layer: -layer.codes_changed)[:_TOP]
    detail = page.table(
        ["<layer", ">codes changed", ">mean distance", ">step drift: 10 %", ">median", ">90 %"],
        [
            [la.title, percent(la.codes_changed), f"{la.distance:.2f}"]
            + [f"{100 * value:+.2f} %" for value in la.step_drift.values()]
            for la in last
        ],
    )
    plots = []
    if len(changes) > 1:
        values = [100.0 * change.codes_changed for change in changes]
        svg = curves(
            list(range(1, len(values) + 1)), [Line("c1", values)], x_label="pair", y_label="% of the codes changed"
        )
        plots = [("Codes changed from one to the next", svg, "")]
    lead = "Share of the codes that differ from one checkpoint to the next; below, the layers of the last pair."
    return page.section(
        "Between checkpoints", lead, page.heat_map([*columns, "all"], rows, "pair"), page.cards(plots), detail
    )


def live_section(live: Live | None) -> str:
    """Results of live steps for weights and activations."""
    if live is None:
        return ""
    steps = [float(number) for number in range(1, len(live.steps) + 1)]

    def plot(title: str, label: str, values: Sequence[float | None], caption: str) -> list[tuple[str, str, str]]:
        shown = [(at, 100.0 * value) for at, value in zip(steps, values, strict=True) if value is not None]
        if not shown:
            return []
        line = Line("c1", [value for _, value in shown])
        return [(title, curves([at for at, _ in shown], [line], x_label="live step", y_label=label), caption)]

    plots = [
        *plot("Codes of weights", "% changed in a step", [s.flips for s in live.steps], ""),
        *plot(
            "Codes of activations",
            "% changed in a step",
            [s.activations_changed for s in live.steps],
            f"On {live.probe_images} fixed images.",
        ),
        *plot(
            "Signs of gradients", "% as in the previous step", [s.sign_agreement for s in live.steps], "50 % is noise."
        ),
    ]
    layers = sorted(live.layers, key=lambda layer: -layer.flips_per_step)[:_TOP]
    weights = page.table(
        ["<layer", ">flips a step", ">of them back", ">gradients keep sign"],
        [
            [
                la.title,
                percent(la.flips_per_step),
                percent(la.oscillations_per_step / la.flips_per_step if la.flips_per_step else 0.0),
                "" if la.sign_agreement is None else percent(la.sign_agreement),
            ]
            for la in layers
        ],
    )
    activations = sorted(live.activations, key=lambda one: -one.changed)[:_TOP]
    operands = page.table(
        ["<activation", ">bits", ">changed a step"],
        [[f"{one.name}, {one.operand}", str(one.bits), percent(one.changed)] for one in activations],
    )
    lead = f"{len(live.steps)} training steps at learning rate {live.lr:.2g}, batches of {live.batch_size}, phase "
    lead += f"'{live.phase}'; they were not saved."
    return page.section("Live steps", lead, page.cards(plots), weights, operands if activations else "")


def _epochs(report: Report) -> str:
    rows = [row for row in report.epochs if row.oscillating is not None and row.flips_per_step is not None]
    if len(rows) < 2:
        return ""
    epochs, marks = [float(row.epoch) for row in rows], []
    for previous, row in pairwise(rows):
        marks += [(row.epoch - 0.5, row.phase)] if row.phase != previous.phase else []
    series = {
        ("Oscillating weights", "% of the weights"): [100.0 * (row.oscillating or 0.0) for row in rows],
        ("Codes that change", "% of the codes in a step"): [100.0 * (row.flips_per_step or 0.0) for row in rows],
    }
    if all(row.val_top1 is not None for row in rows):
        series["Top-1 accuracy", "%"] = [row.val_top1 or 0.0 for row in rows]
    plots = [
        (title, curves(epochs, [Line("c1", values)], x_label="epoch", y_label=label, marks=marks), "")
        for (title, label), values in series.items()
    ]
    plots += _moved(report)
    return page.section("Over training", "All layers together, at the end of each epoch.", page.cards(plots))


def _moved(report: Report) -> Iterator[tuple[str, str, str]]:
    """Which codes are not those at the start, epoch by epoch."""
    rows = [row for row in report.epochs if row.moved is not None]
    if len(rows) < 2:
        return
    figures = {"c1": [row.moved for row in rows], "c2": [row.signs_moved for row in rows]}
    figures["muted"] = [row.magnitudes_moved for row in rows]
    lines = [Line(colour, [100.0 * (value or 0.0) for value in values]) for colour, values in figures.items()]
    svg = curves([float(row.step) for row in rows], lines, x_label="optimizer step", y_label="% of the codes")
    key = page.legend((page.Key("code", "c1"), page.Key("sign", "c2"), page.Key("magnitude", "muted")))
    yield "Codes that are not those at the start", svg + key, "At the end of each epoch, all layers together."


def _phase_marks(report: Report) -> list[tuple[float, str]]:
    """Positions at which phases begin, except for the first."""
    changes = pairwise(report.epochs)
    return [(float(previous.step), row.phase) for previous, row in changes if row.phase != previous.phase]


def _annealing(report: Report) -> Iterator[tuple[str, str, str]]:
    """Before and after CGA, by role."""
    history = report.history
    before = [row for row in report.epochs if row.phase not in report.annealing]
    if history is None or not before or not any(row.phase in report.annealing for row in report.epochs):
        return
    place = max((n for n, step in enumerate(history.steps) if step <= before[-1].step), default=0)
    roles = {role: history.roles[role] for role in drawn(report) if role in history.roles}
    last = len(history.steps) - 1
    shares = {at: [100.0 * one.oscillating[at] for one in roles.values()] for at in (place, last)}
    svg = pairs(list(roles), shares[place], shares[last], x_label="% of the weights that oscillate")
    yield (
        "Before and after annealing",
        svg,
        f"Pale: at step {history.steps[place]}. Full: at step {history.steps[last]}.",
    )
