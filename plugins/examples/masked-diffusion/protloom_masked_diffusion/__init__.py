"""The plugin: masked diffusion."""

from protloom import ObjectiveSpec, hookimpl


@hookimpl
def protloom_objectives() -> list[ObjectiveSpec]:
    """Offers the objective."""
    return [
        ObjectiveSpec(
            name="masked-diffusion",
            factory="protloom_masked_diffusion.masked_diffusion:MaskedDiffusion",
            config="protloom_masked_diffusion.masked_diffusion_config:MaskedDiffusionConfig",
            summary="residues hidden at a rate t of U(0, 1], weighted by 1 / t: a bound on -log p(sequence)",
        )
    ]
