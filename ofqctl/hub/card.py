"""The card of a run: the README.md of its repository. It says what the run says and nothing else."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator

from ofqctl.artifact import Run
from ofqctl.files.sizes import megabytes
from ofqctl.hub.contents import RECIPE, Contents, Graph
from ofqctl.hub.figures import Evaluation, Figures, Images, Measured, measured, shown, split_of
from ofqctl.hub.front_matter import front_matter
from ofqctl.hub.origin import BaseModel, base_model
from ofqctl.recipe import Recipe

_SHOWN = 8  # reasons, notes
_ABOUT = {
    "config.json": "architecture, preprocessing, recipe, and the plan of every quantizer, with a digest",
    "model.safetensors": "weights, packed at their bit-width",
    RECIPE: "how the run was made, for `--recipe`",
    "results.json": "every measured figure, and what it was measured on",
    "last.pt": "the state that `ofqctl train` goes on from",
    "oscillation.safetensors": "what the tracker of oscillating weights saw",
    "summary.csv": "figures of every epoch",
}


def card(contents: Contents, repository: str) -> str:
    """The text of the card.

    Args:
        contents: What goes to the hub.
        repository: ``ORG/NAME``, for the commands.

    Returns:
        Front matter for the hub, and Markdown; the same run always gives the same text.

    Raises:
        ArtifactError: The figures of the run cannot be used.
    """
    run, figures = contents.run, measured(contents.run)
    base = base_model(run.config)
    parts = [
        f"---\n{front_matter(contents, figures, base, repository).to_yaml()}\n---",
        "\n".join(_introduction(run, base)),
        "\n".join(_table(run, figures)),
        *_measured_on(figures.evaluation),
        "\n".join(_use(contents, repository)),
        "\n".join(_files(contents)),
        "\n".join(_made(run, figures, base, repository)),
        "\n".join(_left_float(run)),
        *_noted(figures),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(run: Run, base: BaseModel) -> Iterator[str]:
    config = run.config
    recipe, plan = config.quantization_config.recipe, config.quantization_config.plan
    yield f"# {config.architecture}" + (f", {_bits(recipe)}" if plan.modules else "")
    yield ""
    origin = f"[{base.repository}](https://huggingface.co/{base.repository})" if base.repository else None
    what = f"{config.num_classes} classes" if config.num_classes else "features"
    yield (
        f"`{config.architecture}` of timm, {what}, {'quantized' if plan.modules else 'trained'} with ofqctl by the "
        f"recipe `{_code(recipe.name)}`; weights from {origin or f'`{_code(base.argument)}`'}."
    )
    if base.licence:
        yield ""
        yield f"The float weights are under the licence `{_code(base.licence)}`."


def _bits(recipe: Recipe) -> str:
    return f"{recipe.weights.bits}-bit weights and {recipe.activations.bits}-bit activations"


def _table(run: Run, figures: Measured) -> Iterator[str]:
    """The float model and the run side by side."""
    quantization = run.config.quantization_config
    recipe, size = quantization.recipe, run.ledger
    yield "| | float model | this model |"
    yield "|---|---:|---:|"
    if quantization.plan.modules:
        average = figures.bits.weights if figures.bits and figures.bits.weights else recipe.weights.bits
        yield f"| bits of weights | 32 | {average:g} |"
        yield f"| bits of activations | 32 | {recipe.activations.bits} |"
        for where, layer in (("first", recipe.first), ("last", recipe.last)):
            yield f"| {where} layer: weights, activations | 32, 32 | {layer.weights.bits}, {layer.activations.bits} |"
    yield f"| size of the weights | {megabytes(size.float_model)} | {megabytes(size.total)} |"
    evaluation = figures.evaluation or Evaluation()
    before, after = evaluation.of_float or Figures(), evaluation.own
    yield from (
        f"| {words} | {_percent(before.shares.get(words))} | {_percent(v)} |" for words, v in after.shares.items()
    )
    if after.likeness and after.likeness.cosine is not None:
        yield f"| cosine of embeddings to the float model's | | {after.likeness.cosine:.4f} |"


def _measured_on(evaluation: Evaluation | None) -> Iterator[str]:
    if evaluation is None or evaluation.data is None:
        yield "Nothing was measured when it was made."
        return
    images = f" {evaluation.own.images} images of" if evaluation.own.images else ""
    text = f"Measured on{images} `{_code(shown(evaluation.data))}`"
    change = evaluation.paired
    if change is not None and change.difference is not None and change.standard_error is not None:
        text += f"; image by image {change.difference:+.2f} ± {change.standard_error:.2f} points of top-1"
    yield f"{text}."


def _use(contents: Contents, repository: str) -> Iterator[str]:
    name = shlex.quote(f"hf-hub:{repository}")
    yield "## Use"
    yield ""
    yield "```bash"
    yield "pip install ofqctl"
    yield f"ofqctl predict {name} image.jpg"
    yield f"ofqctl evaluate {name} --data imagenet/val"
    yield f"ofqctl export {name} --onnx --output model.onnx"
    yield "```"
    yield ""
    yield "```python"
    yield "import ofqctl"
    yield ""
    yield f'model = ofqctl.load("hf-hub:{repository}")  # a timm model, in evaluation mode'
    yield "```"
    if contents.graphs:
        yield from _use_of_graph(*next(iter(contents.graphs.items())), repository)


def _use_of_graph(name: str, graph: Graph, repository: str) -> Iterator[str]:
    channels, height, width = graph.description.data_config["input_size"]
    kind = "uint8, RGB" if graph.description.input == "pixels" else "float32, normalized"
    yield ""
    yield "ONNX Runtime alone:"
    yield ""
    yield "```python"
    yield "import onnxruntime"
    yield "from huggingface_hub import hf_hub_download"
    yield ""
    yield f'session = onnxruntime.InferenceSession(hf_hub_download("{repository}", {json.dumps(name)}))'
    yield f"# images: (N, {channels}, {height}, {width}), {kind}"
    yield "outputs = session.run(None, {session.get_inputs()[0].name: images})"
    yield "```"


def _files(contents: Contents) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "| file | bytes | what |"
    yield "|---|---:|---|"
    for name, path in contents.files.items():
        yield f"| `{_code(name)}` | {path.stat().st_size} | {_about(name, contents)} |"


def _about(name: str, contents: Contents) -> str:
    if name not in contents.graphs:
        return _ABOUT[name]
    graph = contents.graphs[name]
    target = f" for {graph.description.target}" if graph.description.target else ""
    return f"ONNX{target}, takes {graph.description.input} images; {graph.products} products compared with torch"


def _made(run: Run, figures: Measured, base: BaseModel, repository: str) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    recipe = run.config.quantization_config.recipe
    if recipe.description:
        yield _plain(recipe.description)
        yield ""
    made = [*_images("calibrated", figures.calibration), *_images("trained", figures.training)]
    if made:
        yield f"{'; '.join(made).capitalize()}. Seed {figures.seed or 0}."
        yield ""
        yield "```bash"
        yield f"hf download {repository} {RECIPE} --local-dir ."
        yield _command(figures, base)
        yield "```"
    else:
        yield "The run does not say with which command it was made."
    written = run.config.quantization_config.written_by
    yield ""
    yield f"Written by ofqctl {_plain(written)}."


def _images(verb: str, images: Images | None) -> Iterator[str]:
    if images is not None:
        number = f" {images.images} images of" if images.images else ""
        yield f"{verb} on{number} `{_code(shown(images.data))}`"


def _command(figures: Measured, base: BaseModel) -> str:
    """The command that makes the run again, with the names of data and files that it was made with."""
    if figures.training:
        verb, made, measured_on = "train", ("--data", "--split"), ("--val-data", "--val-split")
    else:
        verb, made, measured_on = "quantize", ("--calib-data", "--calib-split"), ("--data", "--split")
    images, evaluation = figures.training or figures.calibration, figures.evaluation
    lines = [["ofqctl", verb, base.argument, *base.options], ["--recipe", RECIPE]]
    for data, options in ((images and images.data, made), (evaluation and evaluation.data, measured_on)):
        if data and data != "synthetic":
            name, split = split_of(data)
            lines.append([options[0], name, *([options[1], split] if split else [])])
    return " \\\n    ".join(shlex.join(words) for words in [*lines, ["--seed", str(figures.seed or 0)]])


def _left_float(run: Run) -> Iterator[str]:
    yield "## In float"
    yield ""
    left = run.config.quantization_config.plan.left_float
    if not left:
        yield "Biases, norms and embeddings; no linear layer, convolution or product of attention."
        return
    reasons = Counter((one.type, one.reason) for one in left).most_common()
    yield "Biases, norms and embeddings, and:"
    yield ""
    yield from (f"* {count} x `{_code(kind)}`: {_plain(reason)}" for (kind, reason), count in reasons[:_SHOWN])
    if len(reasons) > _SHOWN:
        yield f"* and {len(reasons) - _SHOWN} more reasons: `ofqctl inspect` lists all"


def _noted(figures: Measured) -> Iterable[str]:
    if figures.notes:
        lines = [f"* {_plain(note)}" for note in figures.notes[:_SHOWN]]
        more = [f"* and {len(figures.notes) - _SHOWN} more in `results.json`"] if len(figures.notes) > _SHOWN else []
        yield "\n".join(["## Notes", "", *lines, *more])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def _code(text: str) -> str:
    """``text`` of others within backticks and tables."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/")


def _plain(text: str) -> str:
    """``text`` of others as words on one line, never as markup of a page."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("<", "&lt;").replace("[", "\\[").replace("|", "\\|").replace("*", "\\*")
