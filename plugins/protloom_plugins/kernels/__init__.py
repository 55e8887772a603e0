"""Kernel backends that protloom ships."""

from protloom import KernelSpec, hookimpl


@hookimpl
def protloom_kernels() -> list[KernelSpec]:
    """Offers the built-in kernel backends."""
    return [
        KernelSpec(
            name="reference",
            factory="protloom_plugins.kernels.reference:ReferenceBackend",
            summary="plain formulas, any device and dtype: what every other backend is compared with",
        ),
        KernelSpec(
            name="torch",
            factory="protloom_plugins.kernels.native:TorchBackend",
            summary="the fastest form that PyTorch itself offers on this device",
        ),
        KernelSpec(
            name="apex",
            factory="protloom_plugins.kernels.apex:ApexBackend",
            summary="NVIDIA apex's fused norms, AdamW, LAMB and clipping, where it was built",
        ),
        KernelSpec(
            name="triton",
            factory="protloom_plugins.kernels.triton:TritonBackend",
            summary="norms, the gated activation and cross entropy as programs of our own, on CUDA",
        ),
        KernelSpec(
            name="flex",
            factory="protloom_plugins.kernels.flex:FlexBackend",
            summary="attention with a bias over packed sequences by PyTorch's FlexAttention, on CUDA",
        ),
    ]
