"""Optimizers that protloom ships."""

from protloom import OptimizerSpec, hookimpl


@hookimpl
def protloom_optimizers() -> list[OptimizerSpec]:
    """Offers the built-in optimizers."""
    return [
        OptimizerSpec(
            name="adamw",
            factory="protloom_plugins.optimizers.adamw:build",
            config="protloom_plugins.optimizers.adamw:AdamWConfig",
            summary="AdamW with decoupled weight decay, none on norms and biases",
        ),
        OptimizerSpec(
            name="lamb",
            factory="protloom_plugins.optimizers.lamb:build",
            config="protloom_plugins.optimizers.lamb:LambConfig",
            summary="LAMB: Adam with steps relative to the norm of the weights, for very large batches",
        ),
        OptimizerSpec(
            name="adafactor",
            factory="protloom_plugins.optimizers.adafactor:build",
            config="protloom_plugins.optimizers.adafactor:AdafactorConfig",
            summary="Adafactor as T5 was trained with: factored second moments, steps relative to the weights",
        ),
    ]
