"""The model registry's public names. Importing them does not import torch, so that listing models is quick."""

from trade_agent.evaluation.grading import PerformanceGrade
from trade_agent.registry.metadata import (
    Bump,
    DataInfo,
    FileInfo,
    ModelMetadata,
    Objective,
    Parent,
    PreprocessorInfo,
)
from trade_agent.registry.snapshot import ModelRecord
from trade_agent.registry.store import LineageLink, LoadedModel, ModelRegistry
from trade_agent.registry.verify import Finding, verify

__all__ = [
    "Bump",
    "DataInfo",
    "FileInfo",
    "Finding",
    "LineageLink",
    "LoadedModel",
    "ModelMetadata",
    "ModelRecord",
    "ModelRegistry",
    "Objective",
    "Parent",
    "PerformanceGrade",
    "PreprocessorInfo",
    "verify",
]
