"""The end of a step: the kernel against plain torch, and plain torch against Python."""

import math
from dataclasses import replace

import pytest
import torch

from pyvae.base.native import missing
from pyvae.control import Control
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.controller import controller
from pyvae.engine.ledger import Ledger
from pyvae.engine.recipe import Recipe
from pyvae.engine.trainer import Trainer
from pyvae.objectives import ControlVAE, FactorVAE
from tiny import TinyData

ROWS, EVERY, LATENTS, VALUES = 4, 3, 5, 6
DTYPES = [torch.float32, torch.float64, torch.float32, torch.float64, torch.float32, torch.float32]


def control_of(offset: float, device) -> Control:
    return Control(*(torch.tensor(offset + i, dtype=torch.float64, device=device) for i in range(5)))


def ledger_on(device, control: bool = True) -> Ledger:
    return Ledger(
        [f"v{i}" for i in range(VALUES + LATENTS)],
        seed=7,
        rows=ROWS,
        log_every=EVERY,
        device=device,
        control=control_of(0.0, device) if control else None,
    )


def step_values(step: int, device):
    g = torch.Generator().manual_seed(step)
    values = [torch.randn((), generator=g, dtype=d).to(device) for d in DTYPES]
    return values, torch.randn(LATENTS, generator=g).to(device)


def everything(ledger: Ledger) -> list[torch.Tensor]:
    tensors = [ledger.key, ledger.row, ledger.bad_step, ledger.bad_row, *(ledger.control or ())]
    # the row of steps that are not logged may hold anything
    return [t.clone() for t in (*tensors, ledger.ring.rows[:-1])]


def play(ledger: Ledger, device, *, poisoned: dict[int, tuple[str, float]], steps: int = 16):
    """(found_inf, everything) after each step."""
    for step in range(steps):
        values, kl = step_values(step, device)
        if step in poisoned:
            where, poison = poisoned[step]
            if where == "kl":
                kl[LATENTS - 1] = poison
            else:
                values[int(where)].fill_(poison)
        found_inf = ledger.settle(values, kl, control_of(step + 0.5, device) if ledger.control else None)
        yield float(found_inf), everything(ledger)


POISONS = [
    {},
    {5: ("0", math.nan)},
    {4: ("5", math.inf), 6: ("0", math.nan)},
    {7: ("kl", -math.inf)},
    {0: ("1", math.nan)},
]


@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("poisoned", POISONS, ids=str)
def test_the_kernel_is_the_reference(poisoned, control, device, fast_backend, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    plain = list(play(ledger_on(device, control), device, poisoned=poisoned))
    monkeypatch.setenv("PYVAE_BACKEND", fast_backend)
    ledger = ledger_on(device, control)
    assert (ledger._triton, ledger._native) == (fast_backend == "triton", fast_backend == "native")
    fast = list(play(ledger, device, poisoned=poisoned))
    for (found, mine), (expected, tensors) in zip(fast, plain, strict=True):
        assert found == expected
        for a, b in zip(mine, tensors, strict=True):
            assert torch.equal(a.nan_to_num(nan=-9.0), b.nan_to_num(nan=-9.0))


@pytest.fixture(params=["reference", "triton", "native"])
def backend(request, monkeypatch) -> str:
    """Of the ledger."""
    if request.param == "triton":
        pytest.importorskip("triton")
    if request.param == "native" and (reason := missing("ledger", "cpu")):
        pytest.skip(reason)
    monkeypatch.setenv("PYVAE_BACKEND", request.param)
    return request.param


def test_a_ledger_by_hand(backend, device):
    ledger = ledger_on(device)
    rows = {}
    for step, (found, _) in enumerate(play(ledger, device, poisoned={5: ("2", math.nan)}, steps=11)):
        values, kl = step_values(step, device)
        rows[step] = [*(float(v) for v in values), *kl.tolist()]
        assert found == (step >= 5)
        if step == 4:
            assert [float(t) for t in ledger.control] == [4.5, 5.5, 6.5, 7.5, 8.5]
            assert ledger.row.tolist() == rows[4]
            # one copy of the steps so far
            assert ledger.ring.copy(0, 5).wait() == [(0, rows[0]), (3, rows[3])]
    assert int(ledger.bad_step) == 5
    bad = ledger.bad_row.tolist()
    assert math.isnan(bad.pop(2))
    rows[5].pop(2)
    assert bad == rows[5]
    assert [float(t) for t in ledger.control] == [4.5, 5.5, 6.5, 7.5, 8.5]  # as before the bad step
    assert ledger.key.tolist() == [7, 11]
    assert ledger.ring.copy(6, 10).wait() == [(6, rows[6]), (9, rows[9])]


def test_judging_leaves_no_trace(backend, device):
    ledger = ledger_on(device)
    before = everything(ledger)
    values, kl = step_values(0, device)
    assert ledger.judge(values, kl).item() == 0.0
    assert ledger.judge([*values, values[0] * math.nan], kl).item() == 1.0
    assert ledger.judge(values, kl * math.inf).item() == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, everything(ledger), strict=True))
    ledger.bad_step.fill_(3)
    assert ledger.judge(values, kl).item() == 1.0


def test_what_the_compiled_operator_refuses(monkeypatch):
    if reason := missing("ledger", "cpu"):
        pytest.skip(reason)
    monkeypatch.setenv("PYVAE_BACKEND", "native")
    cpu = torch.device("cpu")
    ledger = ledger_on(cpu)
    values, kl = step_values(0, cpu)
    before = everything(ledger)
    for wrong, of, reason in (
        ([*values[:-1], values[-1].long()], kl, "values: wrong dtype"),
        ([*values[:-1], values[-1].view(1)], kl, "values: expected scalars"),
        (values, kl.double(), "kl: wrong dtype"),
        (values[:-1], kl, "row: expected"),
        (values, kl[:-1], "row: expected"),
    ):
        with pytest.raises(RuntimeError, match=reason):
            ledger.settle(wrong, of, control_of(0.5, cpu))
    with pytest.raises(RuntimeError, match="expected as many of each"):
        ledger.settle(values, kl, None)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(ledger), strict=True))
    every_other = torch.stack([kl, kl * math.nan], -1)[:, 0]
    assert ledger.settle(values, every_other, control_of(0.5, cpu)).item() == 0.0
    assert ledger.row[VALUES:].tolist() == kl.tolist()


CONTROLLERS = [
    ControlVAE(capacity_period=7, capacity=3.0),
    ControlVAE(schedule="constant", capacity=4.0, anti_windup="published"),
    ControlVAE(schedule="linear", capacity_steps=70, proportional="linear", beta_min=0.9, beta_max=1.05),
    ControlVAE(schedule="linear", capacity_steps=70, anti_windup="paper", beta_max=1.02),
    ControlVAE(schedule="linear", capacity_steps=70, anti_windup="published", beta_max=1.02),
    ControlVAE(schedule="adaptive", capacity_steps=80),
    ControlVAE(schedule="adaptive", capacity_steps=80, adaptive_compared="unlimited", adaptive_tie="hold"),
    ControlVAE(schedule="adaptive", capacity_steps=80, adaptive_window=9, adaptive_smoothing=0.5),
    ControlVAE(schedule="adaptive", capacity_steps=80, adaptive_window=2, beta_max=1.03),
    ControlVAE(schedule="adaptive", capacity_steps=80, adaptive_tie="hold", kp=0.0, beta_max=1.001),
]


@pytest.mark.parametrize("objective", CONTROLLERS, ids=str)
def test_the_controllers_kernel_is_its_reference(objective, device, monkeypatch, triton_backend):
    step_once = controller(objective, device)
    assert step_once != objective.control
    mine = plain = objective.initial_control(device)
    moved = 0
    for step in range(100):
        noise = torch.randn((), generator=torch.Generator().manual_seed(step)).to(device)
        kl = (plain.capacity.float() + 3 * noise).abs()
        at = torch.tensor(step, device=device)
        mine, plain = step_once(mine, kl, at), objective.control(plain, kl, at)
        for name, a, b in zip(Control._fields, mine, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14, msg=f"{name} in step {step}")
        moved += int(plain.integral != 0)
    assert moved > 50


@pytest.mark.parametrize(
    "objective", [ControlVAE(schedule="adaptive"), FactorVAE(discriminator_width=20)], ids=type
)
def test_a_trainer_on_kernels(objective, device, wide_blocks, monkeypatch):
    pytest.importorskip("triton")
    recipe = Recipe(objective=objective, data="tiny", architecture="kim", batch_size=4, latents=4, lr=1e-3)
    settle_arithmetic("fp32")
    rows = {}
    for backend in ("reference", "triton"):
        monkeypatch.setenv("PYVAE_BACKEND", backend)
        trainer = Trainer(recipe, TinyData(), device, capture=False)
        assert trainer.ledger._triton is (backend == "triton")
        trainer.advance(4)
        rows[backend] = trainer.ledger.row.cpu()
        assert trainer.key.tolist() == [0, 4]
    torch.testing.assert_close(rows["triton"], rows["reference"], rtol=2e-4, atol=1e-5)


def test_a_discriminator_whose_gradient_is_not_finite_is_named():
    recipe = Recipe(objective=FactorVAE(discriminator_width=20), data="tiny", batch_size=4, latents=4)
    trainer = Trainer(replace(recipe, architecture="kim"), TinyData(), torch.device("cpu"))
    next(trainer._adversary.trained.module.parameters()).register_hook(lambda grad: grad * torch.nan)
    trainer.advance(2)
    row = dict(zip(trainer.fields, trainer.ledger.bad_row.tolist(), strict=True))
    assert [name for name, value in row.items() if not math.isfinite(value)] == ["discriminator_grad_norm"]
