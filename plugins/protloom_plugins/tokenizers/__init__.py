"""Tokenizers that protloom ships."""

from protloom import TokenizerSpec, hookimpl


@hookimpl
def protloom_tokenizers() -> list[TokenizerSpec]:
    """Offers the built-in tokenizers."""
    return [
        TokenizerSpec(
            name="esm",
            factory="protloom_plugins.tokenizers.esm:EsmTokenizer",
            config="protloom_plugins.tokenizers.esm:EsmTokenizerConfig",
            summary="33 symbols of ESM-2, one residue a token",
        ),
        TokenizerSpec(
            name="amplify",
            factory="protloom_plugins.tokenizers.amplify:AmplifyTokenizer",
            config="protloom_plugins.tokenizers.amplify:AmplifyTokenizerConfig",
            summary="27 symbols of AMPLIFY, one residue a token",
        ),
        TokenizerSpec(
            name="ankh3",
            factory="protloom_plugins.tokenizers.ankh:Ankh3Tokenizer",
            config="protloom_plugins.tokenizers.ankh:Ankh3TokenizerConfig",
            summary="256 symbols of Ankh3: residues, modes [NLU] and [S2S], 225 sentinels",
        ),
        TokenizerSpec(
            name="ankh",
            factory="protloom_plugins.tokenizers.ankh:AnkhTokenizer",
            config="protloom_plugins.tokenizers.ankh:AnkhTokenizerConfig",
            summary="144 symbols of Ankh base, large and 2: residues and sentinels, no modes",
        ),
    ]
