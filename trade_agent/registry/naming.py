"""Spelling of model ids and file names.

An id reads ``cnn_lstm_v1.0.0_grade_A_acc_0.95``: type, version, grade and headline metric at birth. It is a label: no
program takes the grade or the metric from it, they stand in the metadata.
"""

import math
import re

from trade_agent.errors import RegistryError
from trade_agent.evaluation.grading import PerformanceGrade
from trade_agent.registry.versions import Version

MODEL_TYPES = ("cnn_lstm", "ppo", "sac", "td3", "hybrid", "ensemble")

_NUMBER = r"nan|m?inf|m?\d{1,9}\.\d{2}|m?\d\.\d{2}e\d{1,3}"
_GRADE = "|".join(re.escape(grade.value) for grade in PerformanceGrade)
_TOKEN = r"[a-z0-9][a-z0-9_.-]{0,31}"
_VERSION = r"(?:0|[1-9]\d{0,5})(?:\.(?:0|[1-9]\d{0,5})){2}"
MODEL_ID = re.compile(
    rf"(?P<type>{'|'.join(MODEL_TYPES)})_v(?P<version>{_VERSION})_grade_(?:{_GRADE})_{_TOKEN}_(?:{_NUMBER})"
)
METADATA_FILE = re.compile(rf"metadata_v(?P<version>{_VERSION})\.json")
CLAIM_FILE = re.compile(rf"v(?P<version>{_VERSION})")
COMMITTED_FILE = re.compile(rf"v(?P<version>{_VERSION})\.json")
_DATA_FILE = re.compile(
    rf".+_v({_VERSION})_grade_.+\.pth|(?:preprocessor|config|metadata)_v({_VERSION})\.(?:pkl|json|sig)"
)


def spell_number(value: float) -> str:
    """Two decimals; ``m`` stands for minus, very large numbers get an exponent: 0.42, m0.42, 1.00e12, nan, minf."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "minf"
    text = f"{value:.2f}" if abs(value) < 1e9 - 0.01 else f"{value:.2e}".replace("e+", "e")
    if float(text) == 0.0:
        return "0.00"
    return text.replace("-", "m")


def model_id(model_type: str, version: Version, grade: PerformanceGrade, metric: tuple[str, float]) -> str:
    """Compose an id; RegistryError when the type or the metric's name cannot be part of a file name."""
    check_model_type(model_type)
    name, value = metric
    if not re.fullmatch(_TOKEN, name):
        raise RegistryError(
            f"the metric name {name!r} cannot be part of a model id", "use up to 32 of a-z, 0-9, '_', '.' and '-'"
        )
    return f"{model_type}_v{version}_grade_{grade.value}_{name}_{spell_number(value)}"


def check_model_type(model_type: str) -> str:
    """Return ``model_type``, or raise RegistryError when there is no such type."""
    if model_type not in MODEL_TYPES:
        raise RegistryError(f"unknown model type {model_type!r}", f"use one of {', '.join(MODEL_TYPES)}")
    return model_type


def file_names(identifier: str, version: Version | str) -> dict[str, str]:
    """Names of a version's data files by their role."""
    return {
        "model": f"{identifier}.pth",
        "preprocessor": f"preprocessor_v{version}.pkl",
        "config": f"config_v{version}.json",
    }


def metadata_file(version: Version | str) -> str:
    """Name of the file whose appearance is the commit of a version."""
    return f"metadata_v{version}.json"


def data_file_version(name: str) -> Version | None:
    """The version that a file in a model type's folder belongs to; None for any other name."""
    match = _DATA_FILE.fullmatch(name) or METADATA_FILE.fullmatch(name)
    return Version.parse(next(filter(None, match.groups()))) if match else None


def run_file(run_id: str, attempt: int) -> str:
    """Name of the claim that enters a run; another attempt follows one that was given up."""
    return f"run-{run_id}" if attempt == 1 else f"run-{run_id}~{attempt}"
