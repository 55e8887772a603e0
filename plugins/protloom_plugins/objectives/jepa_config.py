"""Options of latent prediction, and the presets that have names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from protloom.settings import Section
from protloom_plugins.objectives.mlm_config import MaskedLMConfig

Decay = Annotated[float, Field(ge=0, le=1)]
Layer = Literal["last", "half"] | Annotated[int, Field(ge=0)]


class PredictorConfig(Section):
    """What maps student states to predictions: gated blocks (SwiGLU) without biases."""

    depth: int = Field(default=1, ge=1, description="Gated blocks, one behind the other")
    expansion: float = Field(default=8 / 3, gt=0, description="Hidden size of a block, relative to the network's width")


class TeacherConfig(Section):
    """An averaged copy of the network, moved after every optimizer step: θ' ← d θ' + (1 - d) θ."""

    start: Decay = Field(default=0.99, description="Decay d at the first step")
    decay: Decay = Field(default=0.999, description="Decay after the ramp")
    ramp_steps: int = Field(default=2000, ge=0, description="Steps from start to decay")
    ramp: Literal["linear", "cosine"] = Field(default="linear", description="Form of the ramp")


class TargetConfig(Section):
    """What is predicted: states of the uncorrupted sequence, without gradient."""

    network: Literal["same", "ema"] = Field(default="same", description="same: the student's weights; ema: a teacher")
    layer: Layer = Field(default="last", description="last, half (after block depth // 2), or the number of a layer")
    teacher: TeacherConfig = TeacherConfig()


class RegulariserConfig(Section):
    """What keeps states from collapsing."""

    name: Literal["sigreg", "visreg", "none"] = "sigreg"
    weight: float = Field(default=1.0, ge=0, description="Weight of its loss")
    directions: int = Field(default=256, ge=1, description="Random projections, drawn anew at every step")
    rows: int = Field(default=4096, ge=1, description="Most states a process takes, at random")
    place: Literal["pred", "pred_ln", "student"] = Field(
        default="pred", description="Of which states: predictions, normalised predictions, the student's"
    )
    scale_by_n: bool = Field(default=True, description="sigreg: keep the factor N, as its authors do")


V1: Mapping[str, Any] = {}
ALL: Mapping[str, Any] = {"positions": "all", "loss": "mse"}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # version 1 of the paper: these are the defaults
    "proteinjepa-v1": V1,
    # version 2: abstract and model card; the teacher's decay, which the card cuts off, is a default of this project
    "proteinjepa-v2": {
        "weight_jepa": 1.0,
        "target": {"network": "ema", "layer": "half"},
        "regulariser": {"name": "visreg", "weight": 0.008},
    },
    # version 1's controls
    "all-position": ALL,
    "jepa-only": ALL,
}
Preset = Literal["proteinjepa-v1", "proteinjepa-v2", "all-position", "jepa-only"]


class JepaConfig(Section):
    """Options of latent prediction; a preset fills what is not given."""

    preset: Preset | None = Field(default=None, description="Options of a published recipe; others given here win")
    weight_jepa: float = Field(default=0.45, ge=0, description="Weight of the prediction loss (λ of the paper)")
    positions: Literal["masked", "all"] = Field(
        default="masked", description="Predict at the residues that the corruption chose, or at every token"
    )
    loss: Literal["cosine", "mse"] = Field(default="cosine", description="1 - cos, or the mean squared difference")
    student_layer: Layer = Field(default="last", description="Whose states the predictor reads")
    target: TargetConfig = TargetConfig()
    normalise: bool = Field(default=True, description="LayerNorm without parameters on predictions and on targets")
    predictor: PredictorConfig = PredictorConfig()
    regulariser: RegulariserConfig = RegulariserConfig()
    corruption_options: MaskedLMConfig = Field(
        default=MaskedLMConfig(mask_rate=0.2), description="The masking, where no other objective's is shared"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("preset") not in PRESETS:
            return given
        return _over(PRESETS[given["preset"]], given)


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``given`` on top of ``base``, section by section."""
    merged = {**base, **given}
    for key, value in base.items():
        if isinstance(value, Mapping) and isinstance(given.get(key), Mapping):
            merged[key] = _over(value, given[key])
    return merged
