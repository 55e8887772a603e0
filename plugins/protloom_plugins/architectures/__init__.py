"""Architectures that protloom ships."""

from typing import Any

from protloom import ArchitectureSpec, hookimpl


def _ankh(layers: int, decoder_layers: int, *, width: int, heads: int, head_size: int, inner: int) -> dict[str, Any]:
    """Returns the options that make a size of ``ankh``."""
    return {
        "layers": layers,
        "decoder_layers": decoder_layers,
        "width": width,
        "heads": heads,
        "head_size": head_size,
        "inner": inner,
    }


AMPLIFY = ArchitectureSpec(
    name="amplify",
    factory="protloom_plugins.architectures.amplify:Amplify",
    config="protloom_plugins.architectures.amplify_config:AmplifyConfig",
    summary="AMPLIFY: pre-norm rotary encoder with RMS norms and SwiGLU layers (Fournier et al. 2024)",
    # tiny is for tests; the others are the released models
    sizes={
        "tiny": {"layers": 2, "width": 32, "heads": 4, "inner": 88},
        "120M": {"layers": 24, "width": 640, "heads": 10, "inner": 1712},
        "350M": {"layers": 32, "width": 960, "heads": 15, "inner": 2560},
    },
    defaults={"tokenizer": "amplify", "objective": "mlm", "optimizer": "adamw"},
    weights="protloom_plugins.architectures.amplify_weights:AmplifyWeights",
)

PROTEINBERT2 = ArchitectureSpec(
    name="proteinbert2",
    factory="protloom_plugins.architectures.proteinbert2:ProteinBert2",
    config="protloom_plugins.architectures.proteinbert2_config:ProteinBert2Config",
    summary="ProteinBERT2-like: convolution stem, then local and global attention by turns",
    # 35M has the published outline; tiny and mini (1.0 M parameters) are for tests and laptops
    sizes={
        "tiny": {"layers": 2, "width": 32, "heads": 4, "inner": 64},
        "mini": {"layers": 6, "width": 128, "heads": 8, "inner": 256},
        "35M": {"layers": 12, "width": 512, "heads": 8, "inner": 1152},
    },
    defaults={"tokenizer": "esm", "objective": "mlm", "optimizer": "adamw"},
)

ESM2 = ArchitectureSpec(
    name="esm2",
    factory="protloom_plugins.architectures.esm2:Esm2",
    config="protloom_plugins.architectures.esm2_config:Esm2Config",
    summary="ESM-2: pre-norm rotary encoder with token dropout (Lin et al. 2023)",
    # layers, width and heads of Lin et al. 2023, table S1; tiny and mini are for tests and laptops
    sizes={
        "tiny": {"layers": 2, "width": 32, "heads": 4},
        "mini": {"layers": 4, "width": 128, "heads": 8},
        "8M": {"layers": 6, "width": 320, "heads": 20},
        "35M": {"layers": 12, "width": 480, "heads": 20},
        "150M": {"layers": 30, "width": 640, "heads": 20},
        "650M": {"layers": 33, "width": 1280, "heads": 20},
        "3B": {"layers": 36, "width": 2560, "heads": 40},
        "15B": {"layers": 48, "width": 5120, "heads": 40},
    },
    defaults={"tokenizer": "esm", "objective": "mlm", "optimizer": "adamw"},
    weights="protloom_plugins.architectures.esm2_weights:Esm2Weights",
    peers={"transformers": "protloom_plugins.architectures.transformers_peer:esm2"},
)

ANKH = ArchitectureSpec(
    name="ankh",
    factory="protloom_plugins.architectures.ankh:Ankh",
    config="protloom_plugins.architectures.ankh_config:AnkhConfig",
    summary="Ankh and Ankh3: T5 v1.1 encoder-decoder, packed on both sides (Elnaggar et al. 2023)",
    # tiny and small are for tests and laptops; twice as many encoder as decoder blocks throughout, as in Ankh
    sizes={
        "tiny": _ankh(layers=2, decoder_layers=1, width=32, heads=2, head_size=16, inner=64),
        "small": _ankh(layers=4, decoder_layers=2, width=256, heads=8, head_size=32, inner=640),
        # Ankh of 2023, with the tokenizer ankh
        "base": _ankh(48, 24, width=768, heads=12, head_size=64, inner=3072) | {"activation": "gelu_tanh"},
        "large": _ankh(48, 24, width=1536, heads=16, head_size=64, inner=3840) | {"activation": "gelu_tanh"},
        "ankh3-large": _ankh(48, 24, width=1536, heads=16, head_size=64, inner=3840),
        "ankh3-xl": _ankh(48, 24, width=2560, heads=32, head_size=64, inner=6720),
    },
    defaults={"tokenizer": "ankh3", "objective": "denoise", "optimizer": "adamw"},
    size_defaults={"base": {"tokenizer": "ankh"}, "large": {"tokenizer": "ankh"}},
    weights="protloom_plugins.architectures.ankh_weights:AnkhWeights",
    peers={"transformers": "protloom_plugins.architectures.transformers_peer:ankh"},
)


@hookimpl
def protloom_architectures() -> list[ArchitectureSpec]:
    """Offers the built-in architectures."""
    return [AMPLIFY, PROTEINBERT2, ESM2, ANKH]
