"""NaN and infinity in any place of a network set the flag of their member, in the step in which they come up, and no
other's."""

import pytest
import torch

from fused import NAN, One, gradient, members_of, plan_of, quick_interpreter, same, step
from pyvae.engine.fused.launch import Launch
from pyvae.engine.fused.members import DIVERGED, Members, rounded
from pyvae.objectives import BetaVAE

INF = float("inf")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True, scope="module")
def triton():
    pytest.importorskip("triton")
    with quick_interpreter():
        yield


def launch_of(label: str) -> Launch:
    plan = plan_of("burgess")
    [its] = [x for x in (*plan.forward, *plan.backward) if x.label == label]
    return its


def flags(members: Members) -> list[int]:
    return members.buffers["flags"].flatten().tolist()


NAMES = list(plan_of("burgess").layout.parameters)


@pytest.mark.parametrize(
    "names", [NAMES[0::4], NAMES[1::4], NAMES[2::4], NAMES[3::4]], ids=["a", "b", "c", "d"]
)
def test_in_a_parameter(names):
    """By the end of the forward pass; a member for each parameter, and one behind them that is as it should be."""
    plan = plan_of("burgess")
    members = members_of(plan, [One(s) for s in range(len(names) + 1)], "burgess")
    for n, name in enumerate(names):
        # the last element, of a weight or a bias; what is infinite is so in half of them
        at = plan.layout.parameters[name].index.flatten()[-1]
        for buffer in ("master", "weights"):
            members.buffers[buffer][n, at] = NAN if n % 2 else INF
    members.prepare(0)
    members.launch(plan.forward)
    assert flags(members) == [DIVERGED] * len(names) + [0]


def test_in_what_weight_gradients_are_made_of():
    """Activations, and gradients at products, of layers of all kinds."""
    plan = plan_of("burgess")
    net = plan.network
    names = [
        *(net.first, f"{net.down[2].name}'", f"{net.encode[0].name}'", net.encode[-1].name, f"{net.head}'"),
        *("z", f"{net.decode_first}'", net.decode[-1].name, f"{net.up[2].name}'"),
    ]
    members = members_of(plan, [One(s) for s in range(len(names) + 1)], "burgess")
    members.buffers["activations"].fill_(1.0)
    for n, name in enumerate(names):
        # the last image's
        at = plan.activations[name] + {"z": 32 + 5, f"{net.head}'": 32 + 20}.get(name, 256 + 99)
        members.buffers["activations"][n, at] = (NAN, INF, -INF)[n % 3]
    members.launch([launch_of("weight gradients")])
    assert flags(members) == [DIVERGED] * len(names) + [0]


PLACES = {
    "gradient at the logits": ("decoder.13 backward", "decoder.13'"),
    "gradient beside the first convolution": (
        "encoder.trunk.2 data gradient, encoder.trunk.0 weight gradient",
        "encoder.trunk.2'",
    ),
    "what the logits are made of": ("decoder.13 forward, loss", "decoder.11"),
    "what the latents are made of": (
        "encoder.head forward, latents, decoder.0 forward",
        "encoder.trunk.11",
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_in_what_a_kernel_reads(place, value):
    label, name = PLACES[place]
    plan = plan_of("burgess")
    members = members_of(plan, [One(0), One(1)], "burgess")
    members.prepare(0)
    members.buffers["activations"].fill_(0.5)
    launch = [launch_of(label)]
    members.launch(launch)
    assert flags(members) == [0, 0]
    members.buffers["activations"][1, plan.activations[name] + 131] = value
    members.launch(launch)
    assert flags(members) == [0, DIVERGED]


def test_gradients_that_operands_cannot_hold():
    """Those of a KL of this weight are beyond fp16: nothing of the step is learnt, and an infinite norm tells of it."""
    ones = [One(1, BetaVAE(beta=1e9)), One(2)]
    members = members_of(plan_of("burgess", operands="fp16"), ones, "burgess")
    names = ("master", "weights", "exp_avg", "exp_avg_sq")
    before = {name: members.buffers[name].clone() for name in names}
    step(members, 0)
    assert flags(members) == [DIVERGED, 0]
    assert members.buffers["row"][:, 5].isfinite().tolist() == [False, True]
    assert members.buffers["row"][0, :5].isfinite().all()
    assert members.buffers["bad_step"].flatten().tolist() == [0, -1]
    for name in names:
        assert same(members.buffers[name][0], before[name][0]), name
        assert not same(members.buffers[name][1], before[name][1]), name


def test_in_a_bias_alone():
    """Of the first convolution where images are black: its weights have no gradient."""
    label, name = PLACES["gradient beside the first convolution"]
    plan = plan_of("burgess")
    members = members_of(plan, [One(0), One(1)], "burgess")
    members.buffers["batch"].zero_()
    members.buffers["master"][:, plan.layout.parameters["encoder.trunk.0.bias"].index] = 1.0
    members.buffers["activations"].fill_(0.5)
    members.buffers["activations"][1, plan.activations[name] + 131] = 1e20
    members.launch([launch_of(label)])
    assert (gradient(members, 1, "encoder.trunk.0.weight") == 0).all()
    assert flags(members) == [0, DIVERGED]


def test_the_nan_that_gpus_make_in_tf32():
    """0x7FFFFFFF, whose last bit carries into its sign where it is rounded as a number; numpy's NaN has zeros there."""
    nan = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32)
    assert rounded(nan.view(torch.float32), "tf32").isnan().all()
    plan = plan_of("burgess", operands="tf32")
    members = members_of(plan, [One(0), One(1)], "burgess")
    at = plan.layout.parameters["encoder.trunk.0.bias"].offset
    members.buffers["master"].view(torch.int32)[0, at] = int(nan[0])
    members.prepare(0)
    members.launch(plan.forward)
    assert flags(members) == [DIVERGED, 0]
