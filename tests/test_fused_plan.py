"""Plans as data: what each launch is given, and that each part of a gradient has one program that writes it."""

from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import pytest
import torch

from fused import ARCHITECTURES, GPU, INTERPRETED, One, members_of, plan_of, quick_interpreter
from pyvae.engine.fused.launch import Launch, Pointer, Size, Stride
from pyvae.engine.fused.layout import ALIGNMENT
from pyvae.engine.fused.plan import Plan
from pyvae.objectives import TCVAE, AnnealedVAE, BetaVAE, CapacityVAE, ControlVAE

GRIDS = [
    *((a, c, b) for a in ARCHITECTURES for c in (1, 3) for b in (16, 64)),
    *(("kim", 1, 1), ("burgess", 1, 5), ("locatello", 3, 100)),
]
CHAIN = {"burgess": 28, "beta-vae-h": 24, "kim": 24, "kim-256": 24, "locatello": 24}
"""Launches of a step."""


def plan(
    architecture: str = "burgess", channels: int = 1, images: int = 64, operands="fp16", **options
) -> Plan:
    return plan_of(architecture, channels, images, operands, tiles=None, **options)


def steps(its: Plan) -> list[Launch]:
    return [*its.forward, *its.weigh, *its.backward, *its.settle]


def kernel_of(launch: Launch):
    pytest.importorskip("triton")
    return getattr(import_module(f"pyvae.kernels.{launch.kernel[0]}"), launch.kernel[1])


# how many


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_launches_of_a_step(architecture, channels):
    its = plan(architecture, channels)
    assert len(steps(its)) == CHAIN[architecture]
    assert len(its.first) == 1
    # the row is the last, and Adam in front of it
    assert [x.kernel[1] for x in steps(its)[-2:]] == ["flat_adam_kernel", "member_rows_kernel"]


@pytest.mark.parametrize(
    ("objective", "more"),
    [(BetaVAE(), 0), (TCVAE(), 0), (CapacityVAE(), 1), (ControlVAE(), 1), (AnnealedVAE(), 1)],
    ids=lambda x: type(x).__name__,
)
def test_a_launch_for_a_weight_that_moves(objective, more):
    its = plan(objective=objective)
    assert len(its.weigh) == more
    assert len(steps(its)) == 28 + more
    extra = dict(its.backward[its.backward_latents].constants)["EXTRA"]
    assert extra == isinstance(objective, TCVAE)


@pytest.mark.parametrize("side_branch", [False, True])
def test_where_latents_are(side_branch):
    """What lies between is for others to read, and to add to."""
    its = plan(side_branch=side_branch)
    assert len(steps(its)) == 28 + side_branch
    assert its.forward[its.to_latents - 1].kernel[1] == "latents_kernel"
    assert its.backward[its.backward_latents].kernel[1] == "latents_backward_kernel"


def test_a_branch():
    its = plan(side_branch=True, pdl=True)
    branched = [n for n, x in enumerate(its.backward) if x.branch]
    joined = [n for n, x in enumerate(its.backward) if x.joins]
    assert [its.backward[n].label for n in branched] == ["weight gradients of the decoder"]
    assert joined == [len(its.backward) - 1]
    # who starts beside another, behind it or for both waits for all of what was before
    assert [dict(its.backward[n].constants)["PDL"] for n in (branched[0], branched[0] + 1, joined[0])] == [
        False
    ] * 3
    both = plan()
    found = sorted(its.weight_tiles)
    assert found == sorted(both.weight_tiles)
    tiles = [x for x in its.backward if x.kernel[1] == "weight_gradients_kernel"]
    covered = [n for x in tiles for n in range(x.arguments[4], x.arguments[4] + x.programs)]
    assert covered == list(range(len(its.weight_tiles)))


def test_a_second_batch():
    its = Plan(
        **{name: getattr(plan(), name) for name in ("network", "layout", "images", "operands", "bits")}
    )
    launches = its.second()
    assert launches[0].kernel[1] == "batch_kernel"
    assert launches[-1].kernel[1] == "latents_kernel"
    assert len(launches) == 1 + its.to_latents
    assert not dict(launches[-1].constants)["DECODES"]
    read = {x.buffer for launch in launches for x in launch.arguments if isinstance(x, Pointer)}
    assert not read & {"batch", "ahead", "stats", "kl_parts"}
    assert read <= {*its.buffers, "store"}


# what each is given


@pytest.mark.parametrize(("architecture", "channels", "images"), GRIDS)
def test_arguments_are_those_of_the_kernels(architecture, channels, images):
    its = plan(architecture, channels, images, objective=ControlVAE())
    for launch in [*its.first, *steps(its)]:
        names = kernel_of(launch).arg_names
        assert sorted(names[len(launch.arguments) :]) == sorted(dict(launch.constants)), launch.label
        given = dict(zip(names, launch.arguments, strict=False))
        for name, x in given.items():
            assert isinstance(x, Pointer) == name.endswith("_ptr"), (launch.label, name)
            assert isinstance(x, Stride) == name.endswith("_ms"), (launch.label, name)
            if isinstance(x, Size):
                assert x.of == name
            if isinstance(x, Stride):
                # of the pointer that it is called after, or of one of the same rows
                same = {"weights": "master", "stats": "stats", "small": "small", "big": "big"}
                pointer = given.get(name.replace("_ms", "_ptr"), given.get(f"{same.get(name[:-3])}_ptr"))
                assert x.buffer == pointer.buffer, (launch.label, name)
        assert launch.programs >= 1
        assert launch.warps in (1, 2, 4, 8)


def test_pointers_are_aligned_and_in_their_buffers():
    for architecture, channels, images in GRIDS:
        its = plan(architecture, channels, images)
        for launch in [*its.first, *steps(its)]:
            for x in launch.arguments:
                if isinstance(x, Pointer) and x.buffer in its.buffers:
                    assert x.offset % ALIGNMENT == 0
                    assert 0 <= x.offset < its.buffers[x.buffer].size
        for buffer in ("weights", "activations", "gradients"):
            assert its.buffers[buffer].size % 16 == 0


@pytest.mark.parametrize("operands", ["fp16", "bf16", "tf32", "fp32"])
def test_operands(operands):
    its = plan(operands=operands)
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
    for name in ("weights", "activations"):
        assert its.buffers[name].dtype == kinds.get(operands, torch.float32)
    for name in ("master", "gradients", "exp_avg", "exp_avg_sq", "stats"):
        assert its.buffers[name].dtype == torch.float32
    for launch in steps(its):
        assert dict(launch.constants).get("TF32", operands == "tf32") == (operands == "tf32")


@pytest.mark.parametrize("pdl", [False, True])
def test_each_kernel_of_the_chain_waits(pdl):
    its = plan(pdl=pdl, objective=ControlVAE())
    assert [dict(x.constants)["PDL"] for x in [*its.first, *steps(its)]] == [pdl] * 30


def test_nothing_depends_on_how_many_members_there_are():
    """A plan is made before it is known; what a launch is given is the same for any."""
    its = plan_of("burgess")
    one, three = (members_of(its, [One(s) for s in range(count)], "burgess") for count in (1, 3))
    for launch in [*its.first, *steps(its)]:
        for x in launch.arguments:
            if not isinstance(x, Pointer):
                assert one._argument(x) == three._argument(x)
    assert {n: b.shape[1:] for n, b in one.buffers.items()} == {
        n: b.shape[1:] for n, b in three.buffers.items()
    }


# what each writes


def activation_sizes(its: Plan) -> dict[str, int]:
    """Numbers of each for an image."""
    net, sizes = its.network, {}
    sizes[net.first] = 32 * 32 * 32
    for pair in net.down:
        sizes[pair.name] = sizes[f"{pair.name}'"] = pair.side**2 * pair.small
    for pair in net.up:
        sizes[pair.name] = sizes[f"{pair.name}'"] = 4 * pair.side**2 * pair.big
    for dense in (*net.encode, *net.decode):
        sizes[dense.name] = sizes[f"{dense.name}'"] = dense.outputs
    sizes[net.decode_first] = sizes[f"{net.decode_first}'"] = net.width_out
    sizes |= {"z": 32, f"{net.head}'": 32, f"{net.last}'": net.channels * 64 * 64}
    return sizes


@pytest.mark.parametrize(("architecture", "channels", "images"), GRIDS)
def test_activations_do_not_overlap(architecture, channels, images):
    its = plan(architecture, channels, images)
    sizes = activation_sizes(its)
    assert sizes.keys() == its.activations.keys()
    lie = sorted((at, at + sizes[name] * images) for name, at in its.activations.items())
    assert lie[0][0] == 0
    for (_, stop), (start, _) in pairwise(lie):
        assert stop <= start
    assert lie[-1][1] <= its.buffers["activations"].size


@pytest.mark.parametrize(("architecture", "channels", "images"), GRIDS)
def test_adam_takes_each_element_of_each_parameter_once(architecture, channels, images):
    its = plan(architecture, channels, images)
    taken = torch.zeros(its.layout.width, dtype=torch.int32)
    assert its.gradients.keys() == its.layout.parameters.keys()
    for block in its.blocks:
        taken[block.target : block.target + block.size] += 1
        assert block.size <= (its.cut.wide if block.parts <= 16 else its.cut.columns)
    expected = torch.zeros_like(taken)
    for name, p in its.layout.parameters.items():
        # in units of 16, the rest of which is zero
        size = -(-p.size // 16) * 16
        expected[p.offset : p.offset + size] = 1
        lie = its.gradients[name]
        assert lie.stride >= size
        own = [b for b in its.blocks if p.offset <= b.target < p.offset + p.size]
        assert {(b.parts, b.stride) for b in own} == {(lie.parts, lie.stride)}
        assert all(b.source - lie.offset == b.target - p.offset for b in own)
    assert torch.equal(taken, expected)
    ends = sorted((g.offset, g.offset + g.parts * g.stride) for g in its.gradients.values())
    for (_, stop), (start, _) in pairwise(ends):
        assert stop <= start
    assert ends[-1][1] <= its.buffers["gradients"].size
    [adam] = [x for x in its.backward if x.kernel[1] == "flat_adam_kernel"]
    words = images * (1024 if channels == 1 else channels * 4096)
    assert adam.programs == len(its.blocks) + words // its.cut.batch
    assert its.buffers["squares"].size == len(its.blocks)


@pytest.mark.parametrize(("architecture", "channels", "images"), GRIDS)
def test_each_element_of_each_part_has_one_tile(architecture, channels, images):
    """Of those that the table of weight gradients makes; and the positions of its parts are all, once."""
    its = plan(architecture, channels, images)
    written = torch.zeros(its.buffers["gradients"].size, dtype=torch.int32)
    rows, columns = torch.arange(128)[:, None], torch.arange(32)[None, :]
    for tile in its.weight_tiles:
        at = (tile.out + rows * tile.b_row + columns)[: 32 * tile.units]
        written[at.flatten()] += 1
        assert (tile.a % 16, tile.b % 16, tile.out % 16) == (0, 0, 0)
    net = its.network
    names = [pair.name for pair in (*net.down, *net.up)]
    names += [dense.name for dense in (*net.encode, *net.decode)] + [net.head, net.decode_first]
    expected = torch.zeros_like(written)
    for name in names:
        lie = its.gradients[f"{name}.weight"]
        assert lie.stride == its.layout.parameters[f"{name}.weight"].size
        expected[lie.offset : lie.offset + lie.parts * lie.stride] = 1
        tiles = [t for t in its.weight_tiles if lie.offset <= t.out < lie.offset + lie.parts * lie.stride]
        positions = images * (1 << 2 * tiles[0].log_side)
        spans = sorted({(t.first, t.first + t.count) for t in tiles})
        assert len(spans) == lie.parts
        assert spans[0][0] == 0
        assert spans[-1][1] == positions
        assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert torch.equal(written, expected)


@pytest.mark.parametrize(("architecture", "channels"), [("burgess", 1), ("locatello", 3)])
def test_a_step_writes_all_that_adam_reads(architecture, channels):
    """With gradients, activations and parts poisoned and the batch not filling the last tiles, no NaN is left where one
    is read: of gradients all parts, and nothing beside them is written."""
    tiles = None if GPU else replace(INTERPRETED, loss=512, positions=512, down=(64, 256, 512))
    its = plan_of(architecture, channels, 3, tiles=tiles)
    with quick_interpreter():
        members = members_of(its, [One(3)], architecture)
        members.prepare(0)
        members.launch([*its.forward, *its.backward])
    row = members.buffers["gradients"][0].cpu()
    read = torch.zeros(len(row), dtype=torch.bool)
    for block in its.blocks:
        for part in range(block.parts):
            start = block.source + part * block.stride
            read[start : start + block.size] = True
    assert row[read].isfinite().all()
    assert row[~read].isnan().all()
    for name in ("stats", "kl_parts", "nll_parts", "squares"):
        assert members.buffers[name].isfinite().all(), name
    values = members.buffers["activations"][0].cpu()
    for name, size in activation_sizes(its).items():
        at = its.activations[name]
        assert values[at : at + size * its.images].isfinite().all(), name
    assert members.buffers["flags"].tolist() == [[0]]
