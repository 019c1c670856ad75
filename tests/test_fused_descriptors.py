"""Weight gradients of convolutions by tensor descriptors: against float64, against pointers, and as compiled code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aot import ARCHITECTURES
from fused import quick_interpreter
from machine_code import SHARED
from pyvae.engine.batches import BatchOrder
from pyvae.engine.fused.boxes import SIDES, box_tiles, descriptors, edge, maps
from pyvae.engine.fused.launch import Tiles
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.members import Member, Members
from pyvae.engine.fused.network import Pair, network_of
from pyvae.engine.fused.plan import Plan
from pyvae.nets import build
from pyvae.objectives import BetaVAE

pytest.importorskip("triton")

MEMBERS, IMAGES, BLOCK, POSITIONS = 2, 4, 64, 512
MARGIN = 256
"""Numbers between maps, which nobody may read."""
# few programs: interpreted, each takes its time
WIDE = Tiles(
    batch=1024,
    first_conv=512,
    down=(64, 256, 256),
    up=(64, 256, 256),
    up_first_conv=256,
    loss=256,
    loss_backward=1024,
    dense_columns=256,
    wide=16384,
    columns=512,
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_interpreter():
        yield


def lay(x: Tensor) -> Tensor:
    """``[S, 2B, side, side, C]`` as a member has them, with their columns of zeros, between margins of NaN."""
    flat = F.pad(x, (0, 0, *[edge(x.shape[2])] * 2)).flatten(1)
    return F.pad(flat, (MARGIN, MARGIN), value=float("nan"))


def gradient(pair: Pair, big: Tensor, small: Tensor) -> Tensor:
    """Of a convolution's weight ``[taps * taps, big, small]``, at all of a batch."""
    weight = torch.zeros(pair.small, pair.big, pair.taps, pair.taps, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(big.double().permute(0, 3, 1, 2), weight, stride=2, padding=pair.taps // 2 - 1)
    (found,) = torch.autograd.grad(out, weight, small.double().permute(0, 3, 1, 2))
    return found.permute(2, 3, 1, 0).flatten(0, 1)


@pytest.mark.parametrize(
    ("big", "small", "taps"), [(32, 32, 4), (32, 64, 4), (64, 64, 4), (32, 64, 2), (64, 64, 2)]
)
def test_the_gradient_of_each_kind_of_pair_is_that_of_float64(big, small, taps, device):
    from triton.tools.tensor_descriptor import TensorDescriptor

    from pyvae.kernels.descriptor_gradients import descriptor_gradients_kernel

    torch.manual_seed(big + small + taps)
    rows, boxes, tiles, expected, at, out = [], [], [], [], 0, 0
    for side in SIDES:
        pair = Pair("", side, big, small, taps)
        x = torch.randn(MEMBERS, 2 * IMAGES, 2 * side, 2 * side, big)
        y = torch.randn(MEMBERS, 2 * IMAGES, side, side, small)
        rows += [lay(x), lay(y)]
        begins = [at + MARGIN, at + rows[-2].shape[1] + MARGIN]
        at += sum(row.shape[1] for row in rows[-2:])
        boxes += descriptors(pair, big=begins[0], small=begins[1], images=IMAGES, block=BLOCK)
        for image in (0, IMAGES):
            for first in range(0, IMAGES * side**2, POSITIONS):
                positions = min(POSITIONS, IMAGES * side**2 - first)
                tiles += box_tiles(pair, out=out, image=image, first=first, positions=positions, block=BLOCK)
                n = slice(image + first // side**2, image + (first + positions) // side**2)
                expected.append(gradient(pair, x[0, n], y[0, n]).flatten())
                out += taps * taps * big * small
    row = torch.cat(rows, 1).to(device)
    for box in boxes:
        assert row[0].as_strided(box.shape, box.strides, box.offset).isfinite().all()
    # beside a member that is no number, of which nothing may get into the other's sums
    row[1] = float("nan")
    gradients = torch.full((MEMBERS, out), float("nan"), device=device)
    flags = torch.zeros(MEMBERS, dtype=torch.int32, device=device)
    table = torch.tensor(tiles, dtype=torch.int32, device=device)
    until = [sum(tile.side >= side for tile in tiles) for side in SIDES]
    stride = row.shape[1]
    descriptions = [
        TensorDescriptor(row[0, box.offset :], [MEMBERS, *box.shape], [stride, *box.strides], [1, *box.block])
        for box in boxes
    ]
    descriptor_gradients_kernel[(len(tiles), MEMBERS)](
        *(*descriptions, row, table, gradients, flags, 0, *until, stride, out),
        BK=64,
        BOX=BLOCK,
        STAGES=2,
        TF32=False,
        PDL=False,
    )
    torch.testing.assert_close(gradients[0].double().cpu(), torch.cat(expected), rtol=1e-5, atol=1e-4)
    assert gradients[1].isnan().all()
    assert flags.tolist() == [0, 1]


def test_a_batch_that_is_no_whole_number_of_boxes_is_refused():
    with pytest.raises(ValueError, match="boxes of 4 images do not make up a batch of 6"):
        descriptors(Pair("", 4, 32, 32, 4), big=0, small=0, images=6, block=64)


# a step


def plan_of(**options) -> Plan:
    network = network_of(build("burgess", 1, 10, seed=0))
    return Plan(network, Layout(network), IMAGES, "fp32", True, tiles=WIDE, **options)


def edges_of(plan: Plan, members: Members) -> list[Tensor]:
    """The columns of zeros of all maps."""
    network, found = plan.network, []
    sides = {network.first: (32, 32)}
    sides |= {f"{pair.name}{of}": (pair.side, pair.small) for pair in network.down[:-1] for of in ("", "'")}
    sides |= {f"{pair.name}{of}": (2 * pair.side, pair.big) for pair in network.up for of in ("", "'")}
    for name, (side, channels) in sides.items():
        size, at = IMAGES * maps(side, channels), plan.activations[name]
        rows = members.buffers["activations"][:, at : at + size].unflatten(1, (-1, side + 2, channels))
        found += [rows[:, :, 0], rows[:, :, -1]]
    return found


def stepped(plan: Plan, seeds: list[int], device: torch.device) -> Members:
    """Members after a step from workspaces of NaN."""
    generator = torch.Generator().manual_seed(1)
    store = torch.randint(-(2**63), 2**63 - 1, (16, 64), generator=generator).to(device)
    fields = ["loss", "recon", "kl", "beta", "capacity", "grad_norm", *(f"kl_{i}" for i in range(10))]
    members = Members(
        plan,
        [Member(seed, BetaVAE(beta=4.0), 1e-3, BatchOrder(seed, 16, IMAGES, device)) for seed in seeds],
        store,
        fields=fields,
        rows=4,
        log_every=1,
    )
    for n, seed in enumerate(seeds):
        members.load(n, 0, dict(build("burgess", 1, 10, seed=seed).named_parameters()))
    for name in ("activations", "gradients", "stats", "kl_parts", "nll_parts", "squares"):
        members.buffers[name].fill_(float("nan"))
    if plan.descriptors:
        for columns in edges_of(plan, members):
            columns.zero_()
    members.prepare(0)
    for launches in (plan.forward, plan.weigh, plan.backward, plan.settle):
        members.launch(launches)
    return members


@pytest.fixture(scope="module")
def steps() -> dict[str, Members]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "pointers": stepped(plan_of(), [4], device),
        "descriptors": stepped(plan_of(descriptors=True), [3, 4], device),
        "alone": stepped(plan_of(descriptors=True), [4], device),
    }


def test_a_step_by_descriptors_is_the_step_by_pointers(steps):
    pointers, boxes = steps["pointers"], steps["descriptors"]
    assert pointers.plan.gradients == boxes.plan.gradients
    for name, (offset, parts, stride) in boxes.plan.gradients.items():
        size = boxes.plan.layout.parameters[name].size
        expected, found = (
            m.buffers["gradients"][-1, offset : offset + parts * stride].view(parts, stride)[:, :size]
            for m in (pointers, boxes)
        )
        largest = float(expected.abs().max())
        assert largest > 0
        # part by part: the positions of a part are the same
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * largest, msg=name)
    torch.testing.assert_close(boxes.buffers["row"][-1], pointers.buffers["row"][-1], rtol=1e-6, atol=1e-6)
    assert boxes.buffers["flags"].tolist() == [[0], [0]]


def test_a_member_alone_takes_the_step_that_it_takes_among_others(steps):
    among, alone = steps["descriptors"], steps["alone"]
    for name in ("gradients", "master", "exp_avg", "exp_avg_sq", "weights", "row"):
        torch.testing.assert_close(
            alone.buffers[name][0], among.buffers[name][1], rtol=0, atol=0, equal_nan=True
        )


def test_no_kernel_writes_the_columns_of_zeros(steps):
    columns = edges_of(steps["descriptors"].plan, steps["descriptors"])
    # maps of 32, 16 and 8, in the encoder without the gradient of the first
    assert len(columns) == 2 * (5 + 6)
    assert all((x == 0).all() for x in columns)


# the plan


def test_boxes_take_no_launch_of_their_own():
    for side_branch in (False, True):
        labels = [
            [x.label for x in plan_of(side_branch=side_branch, descriptors=on).backward]
            for on in (False, True)
        ]
        assert labels[0] == labels[1]


def test_a_decoder_that_is_no_mirror_image_is_refused():
    network = network_of(build("burgess", 1, 10, seed=0))
    wider = network._replace(up=(network.up[0]._replace(small=64), *network.up[1:]))
    with pytest.raises(ValueError, match="whose maps are those of the encoder"):
        Plan(wider, Layout(wider), IMAGES, "fp32", True, tiles=WIDE, descriptors=True)


# as compiled code


@pytest.fixture(
    scope="module",
    # those that have tensor descriptors; the first is what it is meant for
    params=[
        pytest.param(arch, marks=[pytest.mark.slow] * (arch > 90)) for arch in ARCHITECTURES if arch >= 90
    ],
    ids="sm_{}".format,
)
def figures(request) -> dict:
    script = Path(__file__).with_name("aot_descriptors.py")
    command = [sys.executable, str(script), "--archs", str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(done.stdout)
    return row


def test_it_compiles_without_spilling_within_shared_memory(figures):
    assert figures["spills"] == figures["stack"] == 0
    # two programs on a multiprocessor of 9.0; elsewhere registers for three, of which shared memory holds one or two
    programs, registers = (2, 128) if figures["arch"] == 90 else (1, 168)
    assert programs * figures["shared"] <= SHARED[figures["arch"]]
    assert figures["registers"] <= registers


def test_maps_come_as_boxes_to_tensor_cores(figures):
    # three kinds of pairs, three boxes a block of positions of each
    assert figures["boxes"] >= 9
    # a pair's two products of [64, BOX] and [BOX, 32], 16 positions of a box at a time, and the dense layers'
    product = {90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}[figures["arch"]]
    assert figures[product] >= 3 * 2 * Tiles().boxes_k // 16
    assert figures["arch"] != 90 or figures["HMMA"] == 0


def test_it_waits_for_the_launches_before_it_ahead_of_all_traffic(figures):
    assert figures["waits_first"]
