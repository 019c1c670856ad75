"""Adam of a CPU against torch.optim.Adam, bit for bit: steps, state and checkpoints."""

import copy

import pytest
import torch
from torch import nn

from pyvae.base import native
from pyvae.engine import adam_cpu
from pyvae.engine.adam import adam
from pyvae.engine.adam_cpu import CpuAdam
from pyvae.engine.recipe import Recipe
from pyvae.engine.training import training
from pyvae.objectives import FactorVAE, InfoGAN
from tiny import TinyData

CPU = torch.device("cpu")
SHAPES = [(), (1,), (7, 9), (40, 300), (1025,), (6, 4, 3, 5), (32, 32, 4, 4), (3, 1, 2, 2), (4, 4, 4, 4)]
BETAS = (0.8, 0.95)
DECOUPLED = {"weight_decay": 0.1, "decoupled_weight_decay": True}


def parameters(*more: nn.Parameter) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=g) for shape in SHAPES]
    last = torch.channels_last
    return [*(nn.Parameter(x.to(memory_format=last) if x.dim() == 4 else x) for x in drawn), *more]


def give_gradients(of: list[nn.Parameter], step: int, *, but: tuple[int, ...] = ()) -> None:
    g = torch.Generator().manual_seed(100 + step)
    for n, p in enumerate(of):
        drawn = torch.randn(p.shape, generator=g) * 10.0 ** (n % 5 - 3)
        p.grad = None if n in but else torch.empty_like(p).copy_(drawn)


def both(*, lr=1e-2, **options) -> tuple[CpuAdam, torch.optim.Adam]:
    kinds = (CpuAdam, torch.optim.Adam)
    return tuple(kind(parameters(), lr=lr, betas=BETAS, fused=True, **options) for kind in kinds)


def held(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return optimizer.param_groups[0]["params"]


def assert_same(mine: torch.optim.Optimizer, torchs: torch.optim.Optimizer) -> None:
    for p, q in zip(held(mine), held(torchs), strict=True):
        assert torch.equal(p, q)
        assert list(mine.state[p]) == list(torchs.state[q])
        for name, tensor in mine.state[p].items():
            other = torchs.state[q][name]
            assert torch.equal(tensor, other), name
            assert (tensor.dtype, tensor.stride()) == (other.dtype, other.stride())


def play(optimizers, steps, *, but: tuple[int, ...] = (), found_inf: float | None = 0.0) -> None:
    for step in steps:
        for optimizer in optimizers:
            give_gradients(held(optimizer), step, but=but)
            optimizer.found_inf = None if found_inf is None else torch.tensor(found_inf)
            optimizer.step()


@pytest.fixture
def left_to_torch(monkeypatch) -> list[CpuAdam]:
    """Those whose step was torch's."""
    found = []
    whole = torch.optim.Adam.step

    def step(self, closure=None):
        if isinstance(self, CpuAdam):
            found.append(self)
        return whole(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return found


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)], ids=["float", "tensor"])
def test_its_steps_are_torchs(lr, left_to_torch):
    mine, torchs = both(lr=lr)
    play((mine, torchs), range(30))
    assert_same(mine, torchs)
    play((mine, torchs), range(30, 33), found_inf=1.0)
    assert_same(mine, torchs)
    play((mine, torchs), range(33, 35), found_inf=None)
    for optimizer in (mine, torchs):
        optimizer.param_groups[0]["lr"] = 3e-3 if isinstance(lr, float) else torch.tensor(3e-3)
    play((mine, torchs), range(35, 50))
    assert_same(mine, torchs)
    assert [float(mine.state[p]["step"]) for p in held(mine)] == [47.0] * len(SHAPES)
    # torch's makes the state, and no step after it
    assert len(left_to_torch) == 1


def test_a_first_step_that_is_bad():
    optimizers = both()
    play(optimizers, range(2), found_inf=1.0)
    assert_same(*optimizers)
    play(optimizers, range(4))
    assert_same(*optimizers)


def test_parameters_without_a_gradient(left_to_torch):
    mine, torchs = both()
    play((mine, torchs), range(3), but=(3, 6))  # of which there is no state yet
    assert_same(mine, torchs)
    play((mine, torchs), range(3, 6))
    play((mine, torchs), range(6, 9), but=(0, 5))
    play((mine, torchs), range(9, 12))
    assert_same(mine, torchs)
    assert {float(mine.state[p]["step"]) for p in held(mine)} == {9.0, 12.0}
    assert len(left_to_torch) == 7


def test_checkpoints_are_torchs(left_to_torch):
    mine, torchs = both()
    play((mine, torchs), range(4))
    # each goes on from what the other one had
    swapped = both()
    play(swapped, range(50, 52))
    for p, q, r, s in zip(*(held(o) for o in (*swapped, mine, torchs)), strict=True):
        p.data.copy_(s)
        q.data.copy_(r)
    for optimizer, given in zip(swapped, (torchs, mine), strict=True):
        optimizer.load_state_dict(copy.deepcopy(given.state_dict()))
    left_to_torch.clear()
    copied = copy.deepcopy(mine)
    play((mine, torchs, *swapped, copied), range(4, 8))
    for optimizer in (mine, swapped[0], swapped[1], copied):
        assert_same(optimizer, torchs)
    assert not left_to_torch


@pytest.mark.parametrize(
    "options",
    [{"weight_decay": 0.1}, {"maximize": True}, {"amsgrad": True}, DECOUPLED],
)
def test_other_options_are_torchs(options):
    optimizers = both(**options)
    play(optimizers, range(6))
    assert_same(*optimizers)


def test_a_scale_of_gradients_is_torchs():
    optimizers = both()
    play(optimizers, range(3))
    for optimizer in optimizers:
        optimizer.grad_scale = torch.tensor(8.0)
    play(optimizers, range(3, 5))
    assert_same(*optimizers)


def test_a_second_group_is_torchs():
    optimizers = both()
    play(optimizers, range(3))
    for optimizer in optimizers:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))], "lr": 1.0})
        optimizer.param_groups[1]["params"][0].grad = torch.ones(5)
    play(optimizers, range(3, 6))
    assert_same(*optimizers)
    mine, torchs = (optimizer.param_groups[1]["params"][0].detach() for optimizer in optimizers)
    assert torch.equal(mine, torchs)
    assert float(mine[0]) < 0


def test_a_closure_gives_the_gradients():
    optimizers = both()
    play(optimizers, range(3))
    for optimizer in optimizers:

        def closure(of=optimizer):
            give_gradients(held(of), 3)
            return 7.0

        assert optimizer.step(closure) == 7.0
    assert_same(*optimizers)


def test_what_is_laid_out_otherwise(left_to_torch):
    mine, torchs = both()
    transposed = [nn.Parameter(torch.arange(12.0).view(3, 4).t()) for _ in range(2)]
    for optimizer, parameter in zip((mine, torchs), transposed, strict=True):
        held(optimizer).append(parameter)
    play((mine, torchs), range(4))
    assert_same(mine, torchs)
    assert len(left_to_torch) == 4


def test_a_gradient_in_another_order_is_of_the_same_elements():
    mine, torchs = both()
    for step in range(4):
        for optimizer in (mine, torchs):
            give_gradients(held(optimizer), step)
        if step:
            for p in held(mine):
                p.grad = torch.empty(p.shape).copy_(p.grad)
        mine.step()
        torchs.step()
    assert_same(mine, torchs)


def test_memory_of_another_time_is_not_written_to():
    mine, torchs = both()
    play((mine, torchs), range(2))
    old = [p.data for p in held(mine)]
    kept = [x.clone() for x in old]
    for p in held(mine):
        p.data = p.data.clone(memory_format=torch.preserve_format)
    play((mine, torchs), range(2, 4))
    assert_same(mine, torchs)
    assert all(torch.equal(x, y) for x, y in zip(old, kept, strict=True))


def test_a_sparse_gradient_is_refused():
    weight = nn.Parameter(torch.ones(3))
    optimizer = CpuAdam([weight], lr=0.5, fused=True)
    for gradient in (torch.ones(3), torch.ones(3)):
        weight.grad = gradient
        optimizer.step()
    optimizer.zero_grad()
    weight.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


def test_the_reference_is_torchs(monkeypatch):
    for backend, kind in (("auto", CpuAdam), ("native", CpuAdam), ("reference", torch.optim.Adam)):
        monkeypatch.setenv("PYVAE_BACKEND", backend)
        assert type(adam(parameters(), 1e-3, CPU)) is kind


def replace_moment(optimizer):
    for p in held(optimizer)[:2]:
        optimizer.state[p]["exp_avg"] = torch.zeros_like(p)


def replace_step(optimizer):
    optimizer.state[held(optimizer)[1]]["step"] = torch.tensor(100.0)


def forget_one(optimizer):
    optimizer.state.pop(held(optimizer)[2])


def hold_fewer(optimizer):
    optimizer.param_groups[0]["params"].pop()


def double_gradients(optimizer):
    def double(of, *_):
        for p in held(of):
            p.grad.mul_(2.0)

    optimizer.register_step_pre_hook(double)


@pytest.mark.parametrize(
    "change",
    [lambda o: o.state.clear(), replace_moment, replace_step, forget_one, hold_fewer, double_gradients],
    ids=["state cleared", "moment", "step", "state of one", "fewer parameters", "hook"],
)
def test_what_is_changed_between_steps_counts(change):
    optimizers = both()
    play(optimizers, range(3))
    for optimizer in optimizers:
        change(optimizer)
    play(optimizers, range(3, 6))
    assert_same(*optimizers)


def test_the_norm_and_no_gradients():
    of = parameters()
    optimizer = CpuAdam(of, lr=1e-3, fused=True)
    assert float(optimizer.norm()) == 0.0
    give_gradients(of, 0, but=(2,))
    exact = sum(p.grad.double().square().sum() for p in of if p.grad is not None).sqrt()
    norm = optimizer.norm()
    assert norm.dtype == torch.float32
    assert norm.double() == exact.float()
    # in any memory order, with gaps and without
    for n, gradient in ((3, of[3].grad.mT.contiguous().mT), (5, of[5].grad.repeat(1, 1, 1, 2)[..., :5])):
        of[n].grad = gradient
        torch.testing.assert_close(optimizer.norm(), norm, rtol=1e-7, atol=0.0)
    of[4].grad[7] = 1.5e19
    assert optimizer.norm() == 1.5e19
    of[4].grad[7] = 2e19  # whose square Adam could not keep
    assert optimizer.norm().isinf()
    assert copy.deepcopy(optimizer)._norm_is_native == optimizer._norm_is_native
    of[4].grad[8] = float("nan")
    assert optimizer.norm().isnan()
    optimizer.zero_grad(set_to_none=False)
    assert of[2].grad is None
    assert float(optimizer.norm()) == 0.0
    optimizer.zero_grad()
    assert all(p.grad is None for p in of)


@pytest.mark.skipif(native.missing("norm", "cpu") is not None, reason="no compiled operators")
def test_the_norm_is_the_same_for_any_number_of_threads():
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=g) for n in (300_000, 17, 0, 8192, 99_999)]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(torch.ops.pyvae_native.norm(tensors))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2] == torch.cat(tensors).double().norm().float()
    with pytest.raises(RuntimeError, match="tensors: wrong dtype"):
        torch.ops.pyvae_native.norm([tensors[0].double()])


def test_the_norm_without_compiled_operators_is_torchs(monkeypatch):
    monkeypatch.setattr(adam_cpu, "takes_native", lambda *_: False)
    of = parameters()
    optimizer = CpuAdam(of, lr=1e-3, fused=True)
    give_gradients(of, 0)
    assert torch.equal(optimizer.norm(), nn.utils.get_total_norm([p.grad for p in of]))


@pytest.mark.parametrize("objective", [FactorVAE(discriminator_width=20), InfoGAN()], ids=type)
def test_every_trainer_takes_it(objective, left_to_torch, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "auto")
    recipe = Recipe(objective=objective, data="tiny", architecture="kim", batch_size=4, latents=5)
    trainer = training(recipe, TinyData(), CPU)
    trainer.advance(2)
    assert len(left_to_torch) == 2  # the first step of each optimizer
    assert left_to_torch[0] is not left_to_torch[1]
