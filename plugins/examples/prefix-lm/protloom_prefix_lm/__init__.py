"""The plugin: prefix-LM for encoder-decoders."""

from protloom import ObjectiveSpec, hookimpl


@hookimpl
def protloom_objectives() -> list[ObjectiveSpec]:
    """Offers the objective."""
    return [
        ObjectiveSpec(
            name="prefix-lm",
            factory="protloom_prefix_lm.prefix_lm:PrefixLM",
            config="protloom_prefix_lm.prefix_lm_config:PrefixLMConfig",
            summary="the encoder reads a beginning of random length, the decoder writes the rest",
        )
    ]
