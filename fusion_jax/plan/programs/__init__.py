"""The programs of a run: each a class that can trace itself, count its FLOPs and give advice."""

from fusion_jax.plan.programs.aligning import AlignStep
from fusion_jax.plan.programs.distilling import DistilStep
from fusion_jax.plan.programs.merging import MergeTensor
from fusion_jax.plan.programs.program import Dtype, Place, Program, Situation, Start
from fusion_jax.plan.programs.reading import TeacherStep
from fusion_jax.plan.programs.sampling import BeamDecode, Decode, Prefill
from fusion_jax.plan.programs.searching import SearchLayer, SearchLoss
from fusion_jax.plan.programs.training import OBJECTIVES, ObjectiveName, ScoreStep, TrainStep

_KINDS: tuple[type[Program], ...] = (
    TrainStep, AlignStep, DistilStep, ScoreStep, TeacherStep, Prefill, Decode, BeamDecode, SearchLayer, SearchLoss,
    MergeTensor,
)  # fmt: skip
KINDS = {kind.__name__: kind for kind in _KINDS}

__all__ = [
    "KINDS", "OBJECTIVES", "AlignStep", "BeamDecode", "Decode", "DistilStep", "Dtype", "MergeTensor", "ObjectiveName",
    "Place", "Prefill", "Program", "ScoreStep", "SearchLayer", "SearchLoss", "Situation", "Start", "TeacherStep",
    "TrainStep",
]  # fmt: skip
