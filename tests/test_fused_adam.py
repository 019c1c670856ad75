"""Adam over flat weights as a kernel against its formula in float64, and the next step's batch, which it makes."""

import pytest
import torch

from fused import (
    DEVICE,
    NAN,
    Row,
    S,
    batch_of,
    draw,
    error,
    held,
    images_of,
    launch,
    packed,
    quick_interpreter,
)
from pyvae.engine.fused.launch import WINDOW
from pyvae.engine.fused.tables import Block


@pytest.fixture(autouse=True, scope="module")
def triton():
    pytest.importorskip("triton")
    with quick_interpreter():
        yield


SIZES = [(704, 1), (528, 3), (64, 16), (64, 17), (144, 70), (32, 1)]
"""Elements and parts of parameters: of few parts and of many, in blocks that they do not fill, in units of 16."""


def adam(at: list[int], its_flags: list[int], spoil=None):
    """One step of the kernel with state that is drawn; returns it before and after, and the gradient."""
    wide, columns, scale = 256, 32, 1 / 8
    blocks, offset, source = [], 0, 0
    places = []
    for size, parts in SIZES:
        width, stride = (wide if parts <= 16 else columns), size + 16
        places.append((offset, source, size, parts, stride))
        blocks += [
            Block(source + e, offset + e, parts, stride, min(width, size - e)) for e in range(0, size, width)
        ]
        offset += -(-size // 256) * 256
        source += -(-stride * parts // 256) * 256
    gradients = Row(source)
    summed = torch.zeros(S, offset, dtype=torch.float64)
    for n, (to, start, size, parts, stride) in enumerate(places):
        g = draw(parts, size, seed=n)
        gradients.row[:, start : start + parts * stride].view(S, parts, stride)[..., :size] = g.float().to(
            DEVICE
        )
        summed[:, to : to + size] = g.sum(1) * scale
    if spoil:
        spoil(gradients)
    state = {
        "master": draw(offset, seed=20, scale=1e-4),
        "m": draw(offset, seed=21),
        "v": draw(offset, seed=22).square().float().double(),
    }
    rows = {name: held(value) for name, value in state.items()} | {"weight": Row(offset)}
    rates, betas, epsilon = [1e-2, 3e-4], [(0.9, 0.999), (0.8, 0.99)], [1e-8, 1e-6]
    hyper = torch.tensor(
        [
            [lr, 1 - b[0], 1 - b[1], e, *torch.tensor(b, dtype=torch.float64).log().tolist(), NAN, NAN]
            for lr, b, e in zip(rates, betas, epsilon, strict=True)
        ],
        device=DEVICE,
    )
    squares = torch.full((S, len(blocks)), NAN, device=DEVICE)
    pixels = images_of(1, 4)[0]
    ahead, batch = held(torch.zeros(S, WINDOW, 2, dtype=torch.int64)), Row(2, 32, 32, dtype=torch.int16)
    chosen = torch.tensor([[3, 1], [1, 2]])
    for s in range(S):
        ahead.row.view(S, WINDOW, 2)[s, (at[s] + 1) % WINDOW] = chosen[s].to(DEVICE)
    key = torch.tensor([[9, n] for n in at], device=DEVICE)
    launch(
        "flat_adam", "flat_adam_kernel", len(blocks) + 2,
        gradients, torch.tensor(blocks, dtype=torch.int32, device=DEVICE), rows["master"], rows["m"], rows["v"],
        rows["weight"], hyper, key, torch.tensor(its_flags, dtype=torch.int32, device=DEVICE), squares,
        packed(pixels).to(DEVICE), ahead, batch, len(blocks), scale, 2,
        gradients.stride, rows["master"].stride, ahead.stride, batch.stride,
        WIDE=wide, PARTS=32, COLUMNS=columns, WINDOW=WINDOW, CHANNELS=1, BITS=True, BLOCK=1024,
    )  # fmt: skip
    # the next batch is made even where nothing is learnt
    assert torch.equal(batch.values, batch_of(pixels[chosen]))
    used = torch.cat([torch.arange(to, to + size) for to, _, size, _, _ in places])
    after = {name: row.values for name, row in rows.items()}
    settings = list(zip(rates, betas, epsilon, strict=True))
    return state, after, summed, used, squares.cpu().double(), settings, blocks


def moved(state, g, t: int, lr: float, betas, epsilon: float):
    """Adam in float64."""
    m = betas[0] * state["m"] + (1 - betas[0]) * g
    v = betas[1] * state["v"] + (1 - betas[1]) * g.square()
    bias = [1 - b**t for b in betas]
    return m, v, lr / bias[0] * m / ((v / bias[1]).sqrt() + epsilon)


@pytest.mark.parametrize("at", [0, 1, 4, 498, 499, 500, WINDOW - 1, 999_999])
def test_adam(at):
    """The members are at different steps."""
    steps = [at, at + 1]
    state, after, g, used, squares, settings, blocks = adam(steps, [0, 0])
    for s in range(S):
        m, v, down = moved({k: x[s] for k, x in state.items()}, g[s], steps[s] + 1, *settings[s])
        assert error(after["m"][s][used], m[used]) < 1e-6
        assert error(after["v"][s][used], v[used]) < 1e-6
        # of the move itself, of which weights this small hold all digits
        assert error((state["master"][s] - after["master"][s])[used], down[used]) < 1e-6
        assert error(after["master"][s][used], (state["master"][s] - down)[used]) < 1e-6
        assert torch.equal(after["weight"][s][used], after["master"][s][used])
        expected = torch.stack([g[s][b.target : b.target + b.size].square().sum() for b in blocks])
        torch.testing.assert_close(squares[s], expected, rtol=1e-5, atol=0)
    idle = torch.ones(g.shape[1], dtype=torch.bool)
    idle[used] = False
    for name in ("master", "m", "v"):
        assert torch.equal(after[name][:, idle], state[name][:, idle])


@pytest.mark.parametrize("flag", [1, 2, 3])
def test_adam_leaves_a_frozen_member_as_it_is(flag):
    state, after, *_ = adam([3, 3], [0, flag])
    _, free, *_ = adam([3, 3], [0, 0])
    for name in ("master", "m", "v", "weight"):
        assert torch.equal(after[name][0].nan_to_num(7), free[name][0].nan_to_num(7))
    for name in ("master", "m", "v"):
        assert torch.equal(after[name][1], state[name][1])
    assert after["weight"][1].isnan().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_adam_spoils_no_parameter_by_a_gradient_that_is_not_finite():
    """Its flag is for the step's end to set: what moved before it was finite, and the sum of squares tells."""

    def spoil(gradients: Row) -> None:
        gradients.row[1, 7] = float("inf")

    state, after, *_, squares, _, _ = adam([3, 3], [0, 0], spoil)
    _, free, *_ = adam([3, 3], [0, 0])
    for name in ("master", "m", "v"):
        assert torch.equal(after[name][0], free[name][0])
        assert after[name][1, 7] == state[name][1, 7]
        assert after[name][1].isfinite().all()
    assert not squares[1, 0].isfinite()
    assert squares[0].isfinite().all()
