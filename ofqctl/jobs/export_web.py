"""Export a model as a page that runs it in a browser."""

from dataclasses import dataclass, replace
from pathlib import Path

from ofqctl.evaluation import Subject, open_subject
from ofqctl.export import MODEL, PAGE, OnnxModel, check_runs, check_shown, stale, web_runtime, write_page
from ofqctl.files import output_directory, replaced_files
from ofqctl.jobs.export import ExportRequest, export_onnx
from ofqctl.progress import Progress, silent
from ofqctl.results.export import ExportWebResult, Page


@dataclass(frozen=True)
class WebRequest:
    """A request to export a page.

    Attributes:
        onnx: How the model in it is exported; ``output``, ``batch`` and ``pixels`` are the page's.
        folder: The folder to write.
        runtime: The npm package onnxruntime-web, or ``dist`` in it, to copy; None leaves it to the network.
    """

    onnx: ExportRequest
    folder: Path
    runtime: Path | None = None


def export_web(request: WebRequest, progress: Progress = silent) -> ExportWebResult:
    """Write the page, the verified model, and the runtime if it is given, all at one moment.

    Raises:
        PackageError: There is no runtime at the path given, or it is too old for the model.
        OfqctlError: An error that the user can fix; nothing was written.
    """
    runtime = web_runtime(request.runtime)
    onnx = request.onnx
    with (
        output_directory(request.folder, overwrite=onnx.overwrite, sources=onnx.sources, kind=PAGE),
        replaced_files(request.folder, removed=stale(runtime)) as fresh,
    ):
        progress("load the model", 0, None)
        subject = onnx.model if isinstance(onnx.model, Subject) else open_subject(onnx.model)
        check_shown(subject.data_config, subject.labels.num_classes, subject.name)
        model = fresh / MODEL
        result = export_onnx(replace(onnx, model=subject, output=model, batch=1, pixels=False), progress)
        oldest = result.runtimes["onnxruntime"].oldest
        assert oldest is not None  # ONNX Runtime has one for every file
        check_runs(runtime, oldest)
        described = OnnxModel(model).description
        assert described is not None  # it was written with one
        files = write_page(fresh, described, runtime, oldest)
        size = sum((fresh / name).stat().st_size for name in files)
    page = Page(
        folder=str(request.folder),
        files=tuple(files),
        bytes=size,
        runtime=runtime.version,
        offline=runtime.folder is not None,
    )
    values = {name: getattr(result, name) for name in type(result).model_fields}
    return ExportWebResult(**values | {"output": str(request.folder / MODEL)}, page=page)
