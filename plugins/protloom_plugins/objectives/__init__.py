"""Objectives that protloom ships."""

from protloom import ObjectiveSpec, hookimpl


@hookimpl
def protloom_objectives() -> list[ObjectiveSpec]:
    """Offers the built-in objectives."""
    return [
        ObjectiveSpec(
            name="mlm",
            factory="protloom_plugins.objectives.mlm:MaskedLM",
            config="protloom_plugins.objectives.mlm_config:MaskedLMConfig",
            summary="masked language modelling: fixed, per-sequence or scheduled rates, optional spans",
        ),
        ObjectiveSpec(
            name="denoise",
            factory="protloom_plugins.objectives.denoise:Denoise",
            config="protloom_plugins.objectives.denoise_config:DenoiseConfig",
            summary="sentinels in place of masked residues, which the decoder generates: Ankh3's first task, T5, UL2",
        ),
        ObjectiveSpec(
            name="jepa",
            factory="protloom_plugins.objectives.jepa:Jepa",
            config="protloom_plugins.objectives.jepa_config:JepaConfig",
            summary="latent prediction beside masked LM: ProteinJEPA v1, v2 and its controls, as presets",
        ),
        ObjectiveSpec(
            name="complete",
            factory="protloom_plugins.objectives.complete:Complete",
            config="protloom_plugins.objectives.complete_config:CompleteConfig",
            summary="the decoder generates the second part of a sequence: Ankh3's second task",
        ),
    ]
