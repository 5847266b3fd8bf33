"""Export the packed weights of a run for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ofqctl.artifact import save_single_file
from ofqctl.evaluation import open_run
from ofqctl.export.compressed import check_representable, write_compressed
from ofqctl.files import WEIGHTS, output_directory, output_file
from ofqctl.progress import Progress, silent
from ofqctl.results.export import ExportSafetensorsResult

Layout = Literal["ofqctl", "compressed-tensors"]


@dataclass(frozen=True)
class SafetensorsRequest:
    """A request to export packed weights.

    Attributes:
        run: A run directory, the weights file in one, or ``hf-hub:ORG/NAME``.
        layout: ``ofqctl`` is one self-describing file, ``compressed-tensors`` a folder in that program's layout.
        output: Path of the file or folder; None derives it from the run.
        overwrite: Whether to replace existing output.
    """

    run: str | Path
    layout: Layout = "ofqctl"
    output: Path | None = None
    overwrite: bool = False


def export_safetensors(request: SafetensorsRequest, progress: Progress = silent) -> ExportSafetensorsResult:
    """Write the packed weights of a run.

    Raises:
        ArtifactError: The run is damaged, the layout cannot represent it, or the output already exists.
    """
    progress("read the run", 0, None)
    run = open_run(request.run)
    if request.layout == "ofqctl":
        output = request.output or Path(f"{run.place}.safetensors")
        with output_file(output, overwrite=request.overwrite, make_folders=True):
            save_single_file(output, run)
        written = [output]
    else:
        check_representable(run, run.name)
        output = request.output or Path(f"{run.place}-compressed-tensors")
        with output_directory(output, overwrite=request.overwrite, sources=[run.directory]):
            write_compressed(output, run)
        written = [output / "config.json", output / WEIGHTS]
    size = sum(path.stat().st_size for path in written)
    return ExportSafetensorsResult(output=str(output), layout=request.layout, bytes=size)
