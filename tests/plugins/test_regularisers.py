"""SIGReg and VISReg against published numbers, brute force in float64, and themselves on two processes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from protloom_plugins.objectives import regularisers
from protloom_plugins.objectives.regularisers import directions, sigreg, visreg

ONE = torch.ones(1, 1, dtype=torch.float64)


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, 0, 0.5, 2], 0.214214434),
        ([0, 0, 0, 0], 1.608190319),
        ([1, 1, 1, 1], 4.744023222),
        ([-1, 1], 0.205659232),
        ([3], 3.573160124),
    ],
)
def test_sigreg_gives_the_published_numbers(values: list[float], expected: float) -> None:
    assert float(sigreg(column(values), ONE)) == pytest.approx(expected, abs=1e-8)
    assert float(sigreg(column(values), ONE, scale_by_n=False)) == pytest.approx(expected / len(values), abs=1e-8)
    assert float(sigreg(column(values).float(), ONE.float())) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("n", [1, 7, 300])
def test_sigreg_of_normal_samples_is_its_floor(n: int) -> None:
    slices = 4000
    z = torch.randn(n, slices, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    each = torch.stack([sigreg(z[:, k : k + 1], ONE) for k in range(400)])
    error = float(each.std()) / math.sqrt(slices)
    mean = float(sigreg(z, torch.eye(slices, dtype=torch.float64)))
    assert mean == pytest.approx(1.0525, abs=4 * error + 1e-4)


def plain_sigreg(z: Tensor, axes: Tensor) -> Tensor:
    """The definition, knot by knot."""
    u = z @ axes
    total = torch.zeros((), dtype=z.dtype)
    for j in range(17):
        t = 3 * j / 16
        weight = (3 / 16) * (1 if j in (0, 16) else 2)
        phi = math.exp(-t * t / 2)
        misfit = ((t * u).cos().mean(0) - phi) ** 2 + (t * u).sin().mean(0) ** 2
        total = total + weight * phi * misfit.mean()
    return len(z) * total


def plain_visreg(z: Tensor, axes: Tensor) -> Tensor:
    """The definition, with another library's quantiles."""
    b = len(z)
    mean, centred = z.mean(0), z - z.mean(0)
    sigma = centred.square().sum(0).sqrt() / math.sqrt(b) + 1e-6
    normal = torch.from_numpy(scipy.stats.norm.ppf(np.arange(1, b + 1) / (b + 1)))
    shape = torch.zeros((), dtype=z.dtype)
    for k in range(axes.shape[1]):
        projected = ((z - mean) / sigma.detach()) @ axes[:, k]
        shape = shape + (torch.sort(projected).values - normal).square().mean() / axes.shape[1]
    return mean.square().mean() + (sigma - 1).square().mean() + shape


@pytest.mark.parametrize(("ours", "theirs"), [(sigreg, plain_sigreg), (visreg, plain_visreg)])
@pytest.mark.parametrize(("n", "width", "count"), [(2, 3, 1), (31, 8, 5), (200, 16, 64)])
def test_value_and_gradient_are_those_of_the_definition(ours, theirs, n: int, width: int, count: int) -> None:  # type: ignore[no-untyped-def]
    z = torch.randn(n, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.7 + 0.3
    axes = directions(width, count, 5, z)
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    value, expected = ours(mine, axes), theirs(other, axes)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    (value.backward(), expected.backward())
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)
    # and in the precision of training
    single = z.float().requires_grad_()
    assert float(ours(single, axes.float()).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize("ours", [sigreg, visreg])
def test_no_rows_are_a_zero(ours) -> None:  # type: ignore[no-untyped-def]
    z = torch.zeros(0, 4, requires_grad=True)
    value = ours(z, directions(4, 3, 0, z))
    assert float(value.detach()) == 0.0
    value.backward()


def test_directions_are_unit_vectors_and_depend_on_the_seed_alone() -> None:
    like = torch.zeros(1)
    axes = directions(12, 50, 3, like)
    torch.testing.assert_close(axes.norm(dim=0), torch.ones(50))
    assert torch.equal(axes, directions(12, 50, 3, like))
    assert not torch.equal(axes, directions(12, 50, 4, like))


TWO = """
import sys
import torch
from torch.multiprocessing import spawn
from protloom.distributed import World
from protloom_plugins.objectives.regularisers import directions, sigreg, visreg

LENGTHS = (5, 12)

def rows():
    return torch.randn(sum(LENGTHS), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1

def part(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"), "ddp")
    mine = rows().split(LENGTHS)[rank].clone().requires_grad_()
    axes = directions(6, 9, 1, mine)
    for name, value in (
        ("sigreg", sigreg(mine, axes, all_sum=world.all_sum)),
        ("visreg", visreg(mine, axes, all_gather=world.all_gather)),
    ):
        mine.grad = None
        # as the trainer does: each process counts its rows, and gradients are added
        (value * LENGTHS[rank] / sum(LENGTHS)).backward()
        torch.save((value.detach(), mine.grad), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    spawn(part, args=(sys.argv[1],), nprocs=2)
"""


def test_two_processes_with_unequal_rows_are_one(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    z = torch.randn(17, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1
    axes = directions(6, 9, 1, z)
    for name, function in (("sigreg", regularisers.sigreg), ("visreg", regularisers.visreg)):
        whole = z.clone().requires_grad_()
        value = function(whole, axes)  # type: ignore[operator]
        value.backward()
        parts = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for found, _ in parts:
            assert float(found) == pytest.approx(float(value.detach()), rel=1e-12)
        torch.testing.assert_close(torch.cat([g for _, g in parts]), whole.grad, rtol=1e-9, atol=1e-12)
