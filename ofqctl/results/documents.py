"""Every document that ``--json`` prints, by the command that prints it, and their schemas."""

from functools import reduce
from operator import or_
from typing import Any

from pydantic import BaseModel, TypeAdapter

from ofqctl.results.analyze_oscillation import Analysis
from ofqctl.results.bench import BenchInferResult, BenchStepResult
from ofqctl.results.compare import Comparison
from ofqctl.results.distill_cache import DistillCacheResult
from ofqctl.results.doctor import DoctorResult
from ofqctl.results.evaluate import EvaluateEmbeddingsResult, EvaluateResult
from ofqctl.results.export import ExportOnnxResult, ExportSafetensorsResult, ExportWebResult
from ofqctl.results.failure import FailureDocument
from ofqctl.results.importing import ImportResult
from ofqctl.results.inspect import InspectRunResult
from ofqctl.results.models import ModelsResult
from ofqctl.results.onnx import InspectOnnxResult
from ofqctl.results.predict import PredictEmbeddingsResult, PredictResult
from ofqctl.results.push import PushResult
from ofqctl.results.quantize import QuantizeResult
from ofqctl.results.recipes import RecipeCheckResult, RecipeCopyResult, RecipeListResult, RecipeShowResult
from ofqctl.results.sensitivity import SensitivityResult
from ofqctl.results.study import StudyListResult, StudyReport, StudyRunResult, StudyStatus
from ofqctl.results.train import TrainResult

FAILURE = "failure"

DOCUMENTS: dict[str, tuple[type[BaseModel], ...]] = {
    "analyze-oscillation": (Analysis,),
    "bench infer": (BenchInferResult,),
    "bench step": (BenchStepResult,),
    "compare": (Comparison,),
    "distill-cache": (DistillCacheResult,),
    "doctor": (DoctorResult,),
    "evaluate": (EvaluateResult, EvaluateEmbeddingsResult),
    "export": (ExportOnnxResult, ExportSafetensorsResult, ExportWebResult),
    "import": (ImportResult,),
    "inspect": (InspectRunResult, InspectOnnxResult),
    "models": (ModelsResult,),
    "predict": (PredictResult, PredictEmbeddingsResult),
    "push": (PushResult,),
    "quantize": (QuantizeResult,),
    "recipe check": (RecipeCheckResult,),
    "recipe copy": (RecipeCopyResult,),
    "recipe ls": (RecipeListResult,),
    "recipe show": (RecipeShowResult,),
    "sensitivity": (SensitivityResult,),
    "study ls": (StudyListResult,),
    "study report": (StudyReport,),
    "study run": (StudyRunResult,),
    "study status": (StudyStatus,),
    "train": (TrainResult,),
    FAILURE: (FailureDocument,),
}
"""By command; ``failure`` is what each prints if it fails."""


def schema_of(command: str) -> dict[str, Any]:
    """The JSON schema of what a command prints."""
    return TypeAdapter(reduce(or_, DOCUMENTS[command])).json_schema(mode="serialization")


def schema_file(command: str) -> str:
    """Name of the file with that schema, in ``docs/schemas``."""
    return f"{command.replace(' ', '-')}.json"
