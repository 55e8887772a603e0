"""Options of denoising, and the presets that have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from protloom.settings import Section, differing
from protloom_plugins.objectives.mlm_config import Rate, SpanConfig

Rates = Annotated[list[Rate], Field(min_length=1)]
RatePreset = Literal["ankh3", "ankh3-blog", "ankh1"]
Fraction = Annotated[float, Field(gt=0, lt=1)]

# Which rates Ankh3 was trained with is not known from here: the first are those of its first author's masking package,
# the second those of a third party's notes on the paper. Ankh1: one rate, best of four (its ablation).
RATES: Mapping[RatePreset, tuple[float, ...]] = {
    "ankh3": (0.15, 0.20, 0.30),
    "ankh3-blog": (0.15, 0.20, 0.50),
    "ankh1": (0.20,),
}


def rates_of(rates: Sequence[float] | RatePreset) -> tuple[float, ...]:
    """Returns the rates of a preset, or the given ones."""
    return RATES[rates] if isinstance(rates, str) else tuple(rates)


class DenoiserConfig(Section):
    """One denoiser of a mixture: what it hides, and the mode that it tells the network."""

    mask_rates: Rates | RatePreset = Field(default="ankh3", description="Each sequence draws one, all equally likely")
    span: SpanConfig | None = Field(default=None, description="Hide runs of residues; default: one by one")
    suffix: tuple[Fraction, Fraction] | None = Field(
        default=None, description="Hide the end instead: a share of the residues drawn from this range"
    )
    prefix: str = Field(default="auto", description="Mode in front; auto: the tokenizer's, none: nothing")
    share: float = Field(default=1.0, gt=0, description="Share of the sequences, relative to the others")

    @model_validator(mode="after")
    def _one_kind(self) -> DenoiserConfig:
        if self.suffix is not None:
            also = differing(self, ("mask_rates", "span"))
            if also:
                raise ValueError(f"give suffix or {' and '.join(also)}, not both")
            if self.suffix[0] > self.suffix[1]:
                raise ValueError(f"suffix is (smallest, largest) share, not {self.suffix}")
        return self


def _span(mean: float) -> SpanConfig:
    return SpanConfig(mean=mean, max=round(4 * mean))


# Tay et al. 2023, "UL2", table 1: R and X denoisers by mean span length and rate, S is a prefix language model.
UL2 = (
    *(DenoiserConfig(mask_rates=[0.15], span=_span(mean), prefix="NLU") for mean in (3, 8)),
    DenoiserConfig(suffix=(0.25, 0.25), prefix="S2S"),
    *(DenoiserConfig(mask_rates=[0.5], span=_span(mean), prefix="NLG") for mean in (3, 8)),
    *(DenoiserConfig(mask_rates=[rate], span=_span(64), prefix="NLG") for rate in (0.15, 0.5)),
)
"""The seven denoisers of UL2, equally likely; lengths are geometric here."""


class DenoiseConfig(Section):
    """Options of denoising."""

    mask_rates: Rates | RatePreset = Field(
        default="ankh3", description="Rates of which each sequence draws one, all equally likely; or a preset"
    )
    span: SpanConfig | None = Field(default=None, description="Hide runs of residues; default: one by one")
    prefix: str = Field(default="auto", description="Mode in front; auto: the tokenizer's, none: nothing")
    mixture: Literal["ul2"] | Annotated[list[DenoiserConfig], Field(min_length=1)] | None = Field(
        default=None, description="Denoisers of which each sequence draws one, in place of the three options above"
    )
    sentinels: Literal["merged", "unmerged"] = Field(
        default="merged", description="merged: one sentinel for a run of masked residues; unmerged: one for each"
    )
    target: Literal["paired", "t5_literal"] = Field(
        default="paired",
        description="paired: sentinel k, then what it hides; t5_literal: unmasked runs become sentinels",
    )
    overflow: Literal["drop_random", "drop_tail", "error"] = Field(
        default="drop_random", description="More masked runs than sentinels: show random ones, show the last ones, stop"
    )
    head: Literal["decoder", "encoder", "both"] = Field(
        default="decoder", description="What predicts: the decoder, a linear head on the encoder's sentinels, or both"
    )
    z_loss: float = Field(default=0.0, ge=0, description="Weight of (log Z)² at the decoder, in training; T5X: 1e-4")
    mask_positions: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = Field(
        default=None, description="Mask just these residues, counted from 1, of every sequence (for previews)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DenoiseConfig:
        if self.mixture is not None:
            also = differing(self, ("mask_rates", "span", "prefix"))
            if also:
                raise ValueError(f"give mixture or {' and '.join(also)}, not both")
        if self.head != "decoder" and self.sentinels != "unmerged":
            raise ValueError(
                f"head: {self.head} needs sentinels: unmerged, where every masked residue has a position of its own"
            )
        return self

    def denoisers(self) -> tuple[DenoiserConfig, ...]:
        """Returns the denoisers that sequences draw from."""
        if self.mixture is None:
            return (DenoiserConfig(mask_rates=self.mask_rates, span=self.span, prefix=self.prefix),)
        return UL2 if self.mixture == "ul2" else tuple(self.mixture)
