"""The plugin: masked diffusion, and the way to write with what it trained."""

from protloom import GeneratorSpec, ObjectiveSpec, hookimpl


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


@hookimpl
def protloom_generators() -> list[GeneratorSpec]:
    """Offers what ``protloom generate`` writes with."""
    return [
        GeneratorSpec(
            name="masked-diffusion",
            factory="protloom_masked_diffusion.sampler:Sampler",
            config="protloom_masked_diffusion.sampler_config:SamplerConfig",
            objectives=("masked-diffusion",),
            summary="from all hidden to none in some steps",
        )
    ]
