"""``protloom doctor``: what this machine offers, what is missing and what to do about it."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from protloom import __version__
from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    import torch

    from protloom.ops import Backend, Ops
    from protloom.plugins import Registry

MEASURE_SECONDS = 0.2


class Finding(NamedTuple):
    """One line of the report."""

    topic: str
    state: Literal["ok", "note", "broken"]
    text: str
    facts: Any = None
    """The same for programs."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    common.json_option(parser)
    common.example(parser, "protloom doctor", "protloom doctor --json")


def run(args: argparse.Namespace) -> int:
    """Prints the report; returns 1 only if something that protloom itself ships is broken."""
    found = list(_examine(common.registry(args)))
    if args.json:
        common.print_json({"findings": [finding._asdict() for finding in found]})
    else:
        common.print_table(("", "topic", "finding"), [(finding.state, *finding[:1], finding.text) for finding in found])
    return int(any(finding.state == "broken" for finding in found))


def _examine(registry: Registry) -> Iterator[Finding]:
    yield Finding("protloom", "ok", __version__)
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "broken", f"cannot be imported: {error}; see https://pytorch.org/get-started")
    else:
        yield from _machine(torch.__version__)
        yield from _kernels(registry)
    yield from _extras()
    yield from _plugins(registry)
    yield _cache()


def _machine(version: str) -> Iterator[Finding]:
    import torch

    from protloom.device import find_device
    from protloom.machine import usable_cores
    from protloom.precision import compute_dtype

    yield Finding("torch", "ok", version)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for at in range(count):
        about = torch.cuda.get_device_properties(at)
        text = f"cuda:{at} {about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}"
        yield Finding("device", "ok", text)
    if not count:
        built = "this torch is built for CUDA, but finds no device" if torch.version.cuda else "this torch has no CUDA"
        yield Finding("device", "ok", f"cpu only ({built})")
    threads, cores = torch.get_num_threads(), usable_cores()
    limit = os.environ.get("OMP_NUM_THREADS")
    text = f"{threads} for torch, {cores} cores usable" + (f" (OMP_NUM_THREADS={limit})" if limit else "")
    yield Finding("cpu threads", "ok", text, {"threads": threads, "cores": cores})
    device = find_device("auto", "trainer.device")
    ratio = bf16_speedup(device)
    auto = "bf16" if compute_dtype("auto", device, "trainer.precision") is not None else "fp32"
    text = f"a matrix product in bf16 is {ratio:.2g} times as fast as in fp32 on {device}; precision auto takes {auto}"
    yield Finding("bf16", "ok", text, {"speedup": ratio, "auto": auto})


def bf16_speedup(device: torch.device) -> float:
    """Returns how many times faster a matrix product is in bf16 than in fp32, measured in turns for 0.2 s."""
    import time

    import torch

    size = 4096 if device.type == "cuda" else 384
    pairs = [torch.ones(size, size, device=device, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]

    def seconds(matrix: torch.Tensor) -> float:
        start = time.perf_counter()
        _ = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for matrix in pairs:
        seconds(matrix)  # the first call also chooses a kernel
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + MEASURE_SECONDS
    while time.perf_counter() < end:
        best = [min(fastest, seconds(matrix)) for fastest, matrix in zip(best, pairs, strict=True)]
    return best[0] / best[1]


def _kernels(registry: Registry) -> Iterator[Finding]:
    import torch

    from protloom import kernels, ops
    from protloom.device import find_device
    from protloom.precision import compute_dtype

    device = find_device("auto", "trainer.device")
    dtype = compute_dtype("auto", device, "trainer.precision") or torch.float32
    built: dict[str, Backend] = {}
    own: dict[str, Backend] = {}
    for component in registry.components("kernel"):
        name = component.name if component.builtin else component.full_name
        try:
            model = component.load_config()
            backend = component.load_factory()(None if model is None else model())
            backend.unavailable(device)
        except Exception as error:
            cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            yield Finding(f"kernels {name}", "broken" if component.builtin else "note", cause)
            continue
        built[name] = backend
        if component.builtin:
            own[name] = backend
        if hasattr(backend, "installation"):
            fine, text = backend.installation()
            yield Finding(name, "ok" if fine else "note", text)
    try:
        chosen = ops.select("auto", own, {}, device, dtype)
    except UserError as error:
        yield Finding("kernels auto", "broken", str(error))
        return
    for name, backend in built.items():
        yield _backend(name, backend, chosen, device, dtype)
    count, by_reason = len(chosen.choices), dict[tuple[str, str], list[str]]()
    for function, choice in chosen.choices.items():
        by_reason.setdefault((choice.backend, choice.why), []).append(function)
    text = "; ".join(
        f"{name} for {'everything' if len(functions) == count else ', '.join(functions)}, {why}"
        for (name, why), functions in by_reason.items()
    )
    where = f"{device}, {str(dtype).removeprefix('torch.')}"
    yield Finding("kernels auto", "ok", f"takes {text} ({where})", kernels.record(chosen))


def _backend(name: str, backend: Backend, chosen: Ops, device: torch.device, dtype: torch.dtype) -> Finding:
    """Tells what a backend offers here, and why ``auto`` leaves it, or why it cannot run."""
    from protloom import ops

    reason = backend.unavailable(device)
    if reason is not None:
        return Finding(f"kernels {name}", "note", f"not on {device}: {reason}", {"functions": [], "reason": reason})
    offered = sorted(backend.functions(device, dtype))
    text = f"offers {'every function' if set(offered) >= set(ops.NAMES) else ', '.join(offered)}"
    left = {chosen.choices[f].others[name] for f in offered if name in chosen.choices[f].others}
    if name not in chosen.chosen.values():
        text += f"; auto takes none: {'; '.join(sorted(left)) or 'it takes only what protloom ships'}"
    return Finding(f"kernels {name}", "ok", text, {"functions": offered, "reason": None})


def _extras() -> Iterator[Finding]:
    """Tells of every optional group of packages whether it is there, from protloom's own metadata."""
    import re

    groups: dict[str, list[str]] = {}
    for line in metadata.requires("protloom") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if extra and name and extra[1] not in ("all", "test", "dev"):
            groups.setdefault(extra[1], []).append(name[0])
    for extra_name, packages in groups.items():
        versions = {package: _version(package) for package in packages}
        missing = [package for package, version in versions.items() if version is None]
        if missing:
            text = f"{', '.join(missing)} missing: pip install 'protloom[{extra_name}]'"
        else:
            text = ", ".join(f"{package} {version}" for package, version in versions.items())
        yield Finding(f"extra {extra_name}", "note" if missing else "ok", text, versions)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plugins(registry: Registry) -> Iterator[Finding]:
    from protloom.plugins import OWN

    for plugin in registry.plugins:
        if plugin.warning:
            yield Finding(f"plugin {plugin.full_name}", "note", plugin.warning)
        if plugin.state == "ok":
            continue
        state: Literal["note", "broken"] = "note"
        if plugin.state == "broken" and plugin.distribution == OWN:
            state = "broken"
        yield Finding(f"plugin {plugin.full_name}", state, f"{plugin.state}: {plugin.error}")
    yield from _components(registry)
    working = sum(plugin.loaded for plugin in registry.plugins)
    components = len(registry.components())
    yield Finding("plugins", "ok", f"{working} of {len(registry.plugins)} loaded, with {components} components")


def _components(registry: Registry) -> Iterator[Finding]:
    """Tells of every component whose code cannot be imported; a missing optional package is no fault of protloom's."""
    for component in registry.components():
        try:
            component.load_factory()
            component.load_config()
        except UserError as error:
            cause = error.__cause__
            package = (cause.name or "") if isinstance(cause, ModuleNotFoundError) else "protloom"
            ours = component.builtin and package.partition(".")[0].startswith("protloom")
            yield Finding(f"{component.kind} {component.full_name}", "broken" if ours else "note", str(error))


def _cache() -> Finding:
    import tempfile

    from protloom.caches import cache_folder

    folder = cache_folder("stores")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        where = f"{folder} cannot be written ({error.strerror})"
        return Finding("cache", "note", f"{where}: set PROTLOOM_CACHE, or data.cache_dir for stores alone")
    import shutil

    free = shutil.disk_usage(folder).free / 2**30
    return Finding("cache", "ok", f"{folder}, {free:.0f} GiB free")
