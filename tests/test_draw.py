"""Draws of a generator and its critic: the kernel against plain torch, and a step on either."""

from dataclasses import replace

import pytest
import torch

from pyvae.engine.draw import draw
from pyvae.engine.recipe import Recipe
from pyvae.engine.training import training
from pyvae.objectives import InfoGAN, InfoWGANGP
from pyvae.random import Stream, make_key, normal, uniform
from tiny import TinyData

# noise, continuous codes, categories
SIZES = [(5, 4, 3), (5, 5, 0), (4, 8, 2), (0, 1, 0), (1, 0, 7), (130, 3, 40), (3, 0, 300)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_kernel_is_the_reference(sizes, device, monkeypatch):
    assert_as_the_reference(sizes, 67, 65, -(2**63), 2**33 + 5, device, monkeypatch)


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 2**32), (2**40 + 7, -1)])
@pytest.mark.parametrize(("rows", "points"), [(1, 0), (7, 3), (129, 129)])
def test_rows_and_keys(rows, points, seed, step, device, monkeypatch):
    assert_as_the_reference((5, 4, 3), rows, points, seed, step, device, monkeypatch)


def assert_as_the_reference(sizes, rows, points, seed, step, device, monkeypatch):
    pytest.importorskip("triton")
    noise, continuous, categories = sizes
    objective = InfoGAN(noise=noise, continuous=continuous, categories=categories)
    key, made = make_key(seed, step, device), []
    for backend in ("reference", "triton"):
        monkeypatch.setenv("PYVAE_BACKEND", backend)
        made.append(draw(objective, key, rows, points))
    expected, found = made
    assert found.inputs.shape == (rows, sum(sizes))
    assert torch.equal(found.inputs[:, noise:], expected.inputs[:, noise:])
    assert torch.equal(found.inputs[:, :noise], found.codes.noise)
    assert torch.equal(found.codes.continuous, expected.codes.continuous)
    assert torch.equal(found.codes.category, expected.codes.category)
    assert torch.equal(found.points, expected.points)
    for one, other in zip(found.codes, expected.codes, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    # as tests of pyvae.kernels.philox have it
    exact = normal(key, rows, noise, Stream.NOISE, torch.float64) if noise else expected.codes.noise.double()
    torch.testing.assert_close(found.codes.noise.double(), exact, rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_row_draws_the_same_among_any_number(backend, device, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    key = make_key(5, 9, device)
    few, many = (draw(InfoGAN(), key, rows, rows // 2) for rows in (7, 100))
    part = many.rows(0, 7)
    assert torch.equal(few.inputs, part.inputs)
    assert torch.equal(few.points, many.points[:3])
    for one, other in zip(few.codes, part.codes, strict=True):
        assert torch.equal(one, other)
    later = many.rows(40, 20)
    assert torch.equal(later.inputs, many.inputs[40:60])
    assert torch.equal(later.codes.category, many.codes.category[40:60])
    assert torch.equal(later.points, many.points[40:])


def test_draws_without_a_kernel_are_those_of_the_objective(monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    objective, key = InfoGAN(), make_key(5, 9)
    drawn, codes = draw(objective, key, 9, 6), objective.draw(key, 9)
    assert torch.equal(drawn.inputs, objective.generator_input(codes))
    for one, other in zip(drawn.codes, codes, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(drawn.points, uniform(key, 6, 1, Stream.INTERPOLATION)[:, 0])
    assert draw(objective, key, 9, 0).points.shape == (0,)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(InfoGAN(), id="gan"),
        pytest.param(InfoWGANGP(critic_steps=2), id="wgan", marks=pytest.mark.slow),
    ],
)
def test_a_step_on_either(objective, device, monkeypatch):
    pytest.importorskip("triton")
    recipe = Recipe(
        objective=objective, data="tiny", architecture="kim", latents=5, batch_size=8, lr=1e-3, seed=7
    )
    rows, moments = [], []
    for backend in ("reference", "triton"):
        monkeypatch.setenv("PYVAE_BACKEND", backend)
        trainer = training(replace(recipe), TinyData(), device, capture=False)
        trainer.advance()
        rows.append(trainer.ledger.row.clone())
        moments.append({n: t for n, t in trainer.tensors().items() if n.endswith("exp_avg")})
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)
    for name, expected in moments[0].items():
        error = (moments[1][name] - expected).norm()
        assert float(error) <= 5e-3 * float(expected.norm()) + 1e-9, name
