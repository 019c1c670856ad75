"""Whole steps of networks as kernels against float64, and members of an ensemble against each other, bit for bit."""

import functools

import pytest
import torch

from fused import (
    ARCHITECTURES,
    DEVICE,
    IMAGES,
    TILES,
    One,
    Step64,
    data,
    error,
    gradient,
    members_of,
    plan_of,
    quick_interpreter,
    rounder,
    same,
    step,
)
from pyvae.engine.batches import BatchOrder
from pyvae.engine.fused.launch import WINDOW
from pyvae.engine.fused.members import DIVERGED, Members
from pyvae.engine.fused.plan import Plan
from pyvae.nets import build
from pyvae.objectives import AnnealedVAE, BetaVAE, CapacityVAE, ControlVAE, Outputs
from pyvae.random import Stream, make_key, normal

slow = pytest.mark.slow

KEPT = (
    *("master", "weights", "exp_avg", "exp_avg_sq", "stats", "gradients", "squares", "nll_parts", "kl_parts"),
    *("row", "ring", "key", "bad_step", "bad_row", "flags", "found_inf", "kl_weight", "batch", "control"),
)
"""What says of a member all that it has computed."""


@pytest.fixture(autouse=True, scope="module")
def triton():
    pytest.importorskip("triton")
    with quick_interpreter():
        yield


def hold_against(members: Members, member: int, reference: Step64, at: int, weight=None) -> None:
    """A step that has just been made, in plain float32, against float64."""
    expected = reference(at, members.plan.images, weight)
    # an nll of thousands is a sum of thousands of logarithms; a KL of little is what is left of larger numbers
    row = members.buffers["row"][member]
    assert error(row[1], expected.nll) < 5e-7
    assert error(row[5], expected.norm) < 2e-6
    if weight is None:
        assert row[3].item() == members.members[member].objective.beta
        assert row[0].item() == pytest.approx(row[1].item() + row[2].item() * row[3].item(), rel=1e-7)
    torch.testing.assert_close(row[6:], expected.kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(row[2], expected.kl.sum(), rtol=1e-5, atol=1e-6)
    wrong = {name: error(gradient(members, member, name), g) for name, g in expected.gradients.items()}
    assert max(wrong.values()) < 1e-5, wrong
    layout, master = members.plan.layout, members.buffers["master"][member]
    found = layout.tensors(master)
    wrong = {name: error(found[name], p) for name, p in reference.net.named_parameters()}
    assert max(wrong.values()) < 3e-5, wrong
    # nothing has leaked into what fills rows up
    assert torch.equal(layout.row(found), master.cpu())
    for moment in ("exp_avg", "exp_avg_sq"):
        row = members.buffers[moment][member]
        assert torch.equal(layout.row(layout.tensors(row)), row.cpu())
    assert torch.equal(members.buffers["weights"][member], master)


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [
        *(("beta-vae-h", 1), ("kim", 1), ("locatello", 1), ("burgess", 3)),
        *(pytest.param("kim-256", 1, marks=slow), pytest.param("beta-vae-h", 3, marks=slow)),
        *(pytest.param("kim", 3, marks=slow), pytest.param("locatello", 3, marks=slow)),
    ],
)
def test_a_step_is_that_of_autograd_and_adam(architecture, channels):
    one = One(100)
    members = members_of(plan_of(architecture, channels), [one], architecture)
    step(members, 0)
    hold_against(members, 0, Step64(architecture, channels, 10, one), 0)


def test_two_steps_of_two_members():
    ones = [One(100, BetaVAE(beta=4.0)), One(103, BetaVAE(beta=1.5), lr=3e-4)]
    members = members_of(plan_of("burgess"), ones, "burgess")
    references = [Step64("burgess", 1, 10, one) for one in ones]
    for at in range(2):
        step(members, at)
        for member, reference in enumerate(references):
            hold_against(members, member, reference, at)
    assert members.buffers["key"].tolist() == [[100, 2], [103, 2]]


@pytest.mark.parametrize("latents", [5, 20])
def test_other_numbers_of_latents(latents):
    one = One(7)
    members = members_of(plan_of("burgess", latents=latents), [one], "burgess")
    step(members, 0)
    hold_against(members, 0, Step64("burgess", 1, latents, one), 0)


@pytest.mark.parametrize(
    "objective",
    [
        CapacityVAE(gamma=30.0, capacity=4.0, capacity_steps=10),
        ControlVAE(capacity=3.0, schedule="constant", kp=2.0, beta_min=0.5),
        AnnealedVAE(schedule="linear", annealing_steps=8),
    ],
    ids=lambda o: type(o).__name__,
)
def test_a_weight_that_moves(objective):
    """From step 3 on, since in the first there is no capacity and no weight."""
    one = One(11, objective)
    members = members_of(plan_of("burgess", objective=objective), [one], "burgess")
    members.buffers["key"][0, 1] = 3
    step(members, 3)
    row, at = members.buffers["row"][0].cpu(), torch.tensor(3)
    control = None
    if isinstance(objective, ControlVAE):
        control = objective.control(objective.initial_control("cpu"), row[2].float(), at)
        assert members.buffers["control"][0].tolist() == pytest.approx([float(x) for x in control], rel=1e-12)
    nothing = torch.zeros(0)
    outputs = Outputs(
        recon=row[1].float(),
        kl=row[6:].float(),
        z=nothing,
        mu=nothing,
        logvar=nothing,
        dataset_size=IMAGES,
        control=control,
    )
    expected = objective.terms(outputs, at)
    assert row[0].item() == pytest.approx(float(expected["loss"]), rel=1e-6)
    assert row[3].item() == pytest.approx(float(expected["beta"]), rel=1e-6)
    assert row[4].item() == pytest.approx(float(expected["capacity"]), rel=1e-12)
    assert abs(row[3].item()) > 0.1
    reference = Step64("burgess", 1, 10, one)
    found = reference(3, members.plan.images, row[3].item())
    wrong = {name: error(gradient(members, 0, name), g) for name, g in found.gradients.items()}
    assert max(wrong.values()) < 1e-5, wrong


@pytest.mark.parametrize(
    ("architecture", "channels", "operands"),
    [
        *(("burgess", 1, "fp16"), ("burgess", 1, "bf16"), ("burgess", 1, "tf32")),
        *(pytest.param(a, 1, "fp16", marks=slow) for a in ARCHITECTURES[1:]),
        *(
            pytest.param(a, 3, o, marks=slow)
            for a in ("burgess", "locatello")
            for o in ("fp16", "bf16", "tf32")
        ),
    ],
)
def test_operands_are_rounded_where_they_are_stored(architecture, channels, operands):
    """Against float64 rounded at the same places. Sums of another order send one operand in a thousand to the next one
    that it can be; the gradients of all parameters, which are not rounded, are those of plain float32 otherwise."""
    one = One(100)
    members = members_of(plan_of(architecture, channels, operands=operands), [one], architecture)
    step(members, 0)
    reference = Step64(architecture, channels, 10, one, operands, follows=members)
    expected = reference(0, members.plan.images)
    row = members.buffers["row"][0]
    assert error(row[1], expected.nll) < 5e-7
    assert error(row[5], expected.norm) < 5e-6
    assert reference.differ.keys() == members.plan.activations.keys()
    for name, (wrong, count) in reference.differ.items():
        assert count > 0, name
        assert wrong <= 2 + count / 100, (name, wrong, count)
    wrong = {name: error(gradient(members, 0, name), g) for name, g in expected.gradients.items()}
    # the one that is made of operands which are nowhere stored
    assert wrong.pop(f"{members.plan.network.first}.weight") < 5e-4
    assert max(wrong.values()) < 1e-5, wrong
    layout = members.plan.layout
    rounds = rounder(operands)
    assert torch.equal(members.buffers["weights"].double(), rounds(members.buffers["master"]))
    found = layout.tensors(members.buffers["master"][0])
    wrong = {name: error(found[name], p) for name, p in reference.net.named_parameters()}
    assert max(wrong.values()) < 1e-4, wrong


# members and each other

ONES = {
    "low": One(5, ControlVAE(capacity=2.0, schedule="constant", kp=0.5, ki=0.01)),
    "high": One(6, ControlVAE(capacity=9.0, schedule="constant", kp=0.1, beta_min=0.2), lr=5e-4),
    "other": One(2**40 + 7, ControlVAE(capacity=1.0, schedule="constant", ki=0.05), lr=2e-3),
}


def control_plan(**options) -> Plan:
    return plan_of("burgess", operands="fp16", objective=ONES["low"].objective, **options)


def run(*names: str, **options) -> Members:
    members = members_of(control_plan(**options), [ONES[name] for name in names], "burgess")
    for at in range(2):
        step(members, at)
    return members


@functools.cache
def alone() -> Members:
    return run("high")


def assert_same(found: Members, member: int, expected: Members, other: int, kept=KEPT) -> None:
    for name in kept:
        a, b = found.buffers[name][member], expected.buffers[name][other]
        assert same(a, b), name


def test_a_member_computes_what_it_would_alone():
    three = run("low", "high", "other")
    assert_same(three, 1, alone(), 0)
    two = run("other", "low")
    assert_same(two, 0, three, 2)
    assert_same(two, 1, three, 0)
    assert not torch.equal(three.buffers["master"][0], three.buffers["master"][1])


def test_two_runs_are_equal():
    assert_same(run("high"), 0, alone(), 0)


def test_a_member_that_goes_on_where_it_was():
    """From what a checkpoint holds, in new members."""
    first = members_of(control_plan(), [ONES["high"]], "burgess")
    step(first, 0)
    tensors = {name: value.clone() for name, value in first.tensors(0).items()}
    assert set(first.plan.layout.parameters) <= set(tensors)
    assert tensors["optimizer.encoder.head.bias.step"].item() == 1
    second = members_of(control_plan(), [ONES["high"]], "burgess")
    second.load(0, 1, tensors)
    second.buffers["control"].copy_(first.buffers["control"])
    step(second, 1)
    assert_same(second, 0, alone(), 0, [name for name in KEPT if name != "ring"])


def test_a_branch_for_the_decoder_changes_no_bit():
    assert_same(run("high", side_branch=True), 0, alone(), 0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_nan_in_one_member_touches_no_other():
    members = members_of(control_plan(), [ONES["low"], ONES["high"]], "burgess")
    at = members.plan.layout.parameters["encoder.trunk.4.weight"].offset + 1234
    for name in ("master", "weights"):
        members.buffers[name][0, at] = float("nan")
    before = {
        name: members.buffers[name][0].clone() for name in ("master", "exp_avg", "exp_avg_sq", "control")
    }
    for n in range(2):
        step(members, n)
    assert_same(members, 1, alone(), 0)
    for name, value in before.items():
        assert same(members.buffers[name][0], value), name
    assert members.buffers["flags"].flatten().tolist() == [DIVERGED, 0]
    assert members.buffers["found_inf"].flatten().tolist() == [1.0, 0.0]
    assert members.buffers["bad_step"].flatten().tolist() == [0, -1]
    assert members.buffers["key"][:, 1].tolist() == [2, 2]


def test_a_frozen_member_learns_nothing_and_is_not_bad():
    members = members_of(control_plan(), [ONES["low"], ONES["high"]], "burgess")
    step(members, 0)
    members.freeze(0)
    kept = ("master", "weights", "exp_avg", "exp_avg_sq", "row", "ring", "control", "key")
    before = {name: members.buffers[name][0].clone() for name in kept}
    step(members, 1)
    assert_same(members, 1, alone(), 0)
    for name, value in before.items():
        assert torch.equal(members.buffers[name][0], value), name
    assert members.buffers["bad_step"].flatten().tolist() == [-1, -1]


# batches


def test_batches_go_on_beyond_the_ring():
    """The batch of the step behind the last of a window is the first of the next."""
    one = One(21)
    members = members_of(plan_of("burgess"), [one], "burgess")
    members.buffers["key"][0, 1] = WINDOW - 1
    step(members, WINDOW - 1)
    members.prepare(WINDOW)
    members.launch(members.plan.forward)
    which = BatchOrder(21, IMAGES, members.plan.images, DEVICE).draw(WINDOW, 1)[0]
    # the bit of the pixel at an output's window that is the top left of its own
    words = members.buffers["batch"][0].view(-1, 32, 32).int()
    assert torch.equal((words >> 5) & 1, data(1)[1][which][:, 0, ::2, ::2].int())


def test_latents_of_a_second_batch():
    found = plan_of("burgess")
    plan = Plan(
        found.network, found.layout, found.images, "fp32", True, tiles=TILES, weighting=found.weighting
    )
    launches, one = plan.second(), One(31)
    members = members_of(plan, [one], "burgess")
    order = BatchOrder(31, IMAGES, plan.images, DEVICE, Stream.SECOND_BATCH)
    members.add_batches("second_ahead", [order])
    members.prepare(0)
    kept = [members.buffers[name].clone() for name in ("stats", "kl_parts", "batch")]
    members.launch(launches)
    for before, name in zip(kept, ("stats", "kl_parts", "batch"), strict=True):
        assert same(before, members.buffers[name]), name
    with torch.no_grad():
        mu, logvar = build("burgess", 1, 10, seed=31).double().encoder(data(1)[1][order.draw(0, 1)[0]].cpu())
    eps = normal(make_key(31, 0), plan.images, 10, Stream.SECOND_POSTERIOR, torch.float64)
    for value, expected in zip(
        members.latents(0, "second_stats"), (mu, logvar, mu + torch.exp(0.5 * logvar) * eps), strict=True
    ):
        assert error(value, expected) < 1e-5


# long


@slow
def test_a_step_with_the_tiles_meant_for_a_gpu():
    one = One(100)
    members = members_of(plan_of("burgess", images=16, tiles=None), [one], "burgess")
    step(members, 0)
    hold_against(members, 0, Step64("burgess", 1, 10, one), 0)


@pytest.mark.parametrize("steps", [10, pytest.param(200, marks=slow)])
def test_many_steps_stay_as_near_to_float64_as_torch_in_float32(steps):
    """Rounding grows from step to step: torch in float32 says by how much."""
    one = One(100)
    members = members_of(plan_of("burgess"), [one], "burgess")
    exact, plain = Step64("burgess", 1, 10, one), Step64("burgess", 1, 10, one, dtype=torch.float32)
    start = {name: p.detach().clone() for name, p in exact.net.named_parameters()}
    for at in range(steps):
        step(members, at)
        expected, near = exact(at, members.plan.images), plain(at, members.plan.images)
        ours, torchs = (error(nll, expected.nll) for nll in (members.buffers["row"][0, 1], near.nll))
        assert ours < 1e-6 + 10 * torchs + 1e-4 * at / 200, at
    found = members.plan.layout.tensors(members.buffers["master"][0])
    ours, torchs, moved = (
        torch.tensor([error(values[name], p) for name, p in exact.net.named_parameters()])
        for values in (found, dict(plain.net.named_parameters()), start)
    )
    assert moved.median() > 0.1
    assert ours.median() < 3 * torchs.median() + 1e-7 * steps, (ours, torchs)
    assert ours.max() < 3 * torchs.max() + 1e-6 * steps, (ours, torchs)
