"""The kernels of whole networks, one by one, against torch in float64: plain float32, two members side by side."""

import pytest
import torch
import torch.nn.functional as F

from fused import (
    DEVICE,
    One,
    Row,
    S,
    batch_of,
    draw,
    error,
    flags,
    held,
    images_of,
    launch,
    members_of,
    packed,
    plan_of,
    quick_interpreter,
    rounder,
)
from pyvae.engine.fused.launch import WINDOW, Tiles
from pyvae.engine.fused.layout import padded, z_width
from pyvae.random import Stream, make_key, normal


@pytest.fixture(autouse=True, scope="module")
def triton():
    pytest.importorskip("triton")
    with quick_interpreter():
        yield


def close(found: torch.Tensor, expected: torch.Tensor, bound: float = 2e-6) -> None:
    """Each member by itself."""
    assert found.shape == expected.shape
    for a, b in zip(found, expected, strict=True):
        assert error(a, b) < bound


def parts_of(x: torch.Tensor, rows: int) -> torch.Tensor:
    """``[S, blocks, columns]``: the sums over each ``rows`` of x ``[S, rows, columns]``."""
    return torch.stack([block.sum(1) for block in x.split(rows, 1)], 1)


def per_member(f, *values):
    """A function of each member's values."""
    return torch.stack([f(*(v[s] for v in values)) for s in range(S)])


# convolution pairs


def maps(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def weight(w: torch.Tensor, taps: int) -> torch.Tensor:
    """As torch has it, of ``[taps * taps, big, small]``."""
    return w.view(taps, taps, *w.shape[1:]).permute(3, 2, 0, 1)


PAIRS = [(4, 32, 32), (4, 32, 64), (4, 64, 32), (2, 64, 64), (2, 32, 64)]
"""Taps, channels of the big maps, of the small ones."""


@pytest.mark.parametrize(("taps", "big", "small"), PAIRS)
@pytest.mark.parametrize("gated", [False, True])
def test_conv_down(taps, big, small, gated):
    """Five images of 4 x 4 outputs: the second of two tiles of 64 rows has 16."""
    images, side, rows = 5, 4, 64
    x, w = draw(images, 2 * side, 2 * side, big), draw(taps * taps, big, small, seed=1, scale=0.1)
    b, gate = draw(small, seed=2), draw(images, side, side, small, seed=3)
    gate[gate < -1] = 0
    product = per_member(
        lambda x, w: channels_last(F.conv2d(maps(x), weight(w, taps), stride=2, padding=taps // 2 - 1)), x, w
    )
    out, sums = Row(images, side, side, small), Row(2, small)
    big_row, w_row, b_row, gate_row = held(x), held(w), held(b), held(gate)
    launch(
        "conv_pair", "conv_down_kernel", 2,
        big_row, w_row, b_row, gate_row, out, sums, images * side * side,
        big_row.stride, w_row.stride, b_row.stride, out.stride, sums.stride,
        H=side, CB=big, CS=small, TAPS=taps, BM=rows, BK=min(128, taps * big), GATED=gated, FEATURES=0, EDGE=0,
    )  # fmt: skip
    if not gated:
        close(out.values, F.relu(product + b[:, None, None, None]))
        return
    expected = product * (gate > 0)
    close(out.values, expected)
    close(sums.values, parts_of(expected.view(S, -1, small), rows))


def test_conv_down_with_a_bias_for_each_pixel():
    """Three images, two to a tile."""
    images, side, c = 3, 4, 32
    x, w = draw(images, 8, 8, c), draw(16, c, c, seed=1, scale=0.1)
    gate = draw(images, side, side, c, seed=3)
    product = per_member(
        lambda x, w: channels_last(F.conv2d(maps(x), weight(w, 4), stride=2, padding=1)), x, w
    )
    out, sums = Row(images, side, side, c), Row(2, side * side * c)
    big_row, w_row, gate_row, bias = held(x), held(w), held(gate), Row(c)
    launch(
        "conv_pair", "conv_down_kernel", 2,
        big_row, w_row, bias, gate_row, out, sums, images * side * side,
        big_row.stride, w_row.stride, bias.stride, out.stride, sums.stride,
        H=side, CB=c, CS=c, TAPS=4, BM=32, BK=128, GATED=True, FEATURES=side * side * c, EDGE=0,
    )  # fmt: skip
    expected = product * (gate > 0)
    close(out.values, expected)
    close(sums.values, parts_of(expected.view(S, images, -1), 2))


@pytest.mark.parametrize(("taps", "big", "small"), PAIRS)
@pytest.mark.parametrize("gated", [False, True])
def test_conv_up(taps, big, small, gated):
    images, side, rows = 5, 4, 64
    x, w = draw(images, side, side, small), draw(taps * taps, big, small, seed=1, scale=0.1)
    b, gate = draw(big, seed=2), draw(images, 2 * side, 2 * side, big, seed=3)
    gate[gate < -1] = 0
    product = per_member(
        lambda x, w: channels_last(
            F.conv_transpose2d(maps(x), weight(w, taps), stride=2, padding=taps // 2 - 1)
        ),
        x,
        w,
    )
    out, sums = Row(images, 2 * side, 2 * side, big), Row(8, big)
    small_row, w_row, b_row, gate_row = held(x), held(w), held(b), held(gate)
    launch(
        "conv_pair", "conv_up_kernel", 8,
        small_row, w_row, b_row, gate_row, out, sums, images * side * side,
        small_row.stride, w_row.stride, b_row.stride, out.stride, sums.stride,
        H=side, CB=big, CS=small, TAPS=taps, BM=rows, GATED=gated, EDGE=0,
    )  # fmt: skip
    if not gated:
        close(out.values, F.relu(product + b[:, None, None, None]))
        return
    expected = product * (gate > 0)
    close(out.values, expected)
    # a part for each tile and parity of rows and columns
    parities = torch.stack([expected[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)], 1)
    blocks = parts_of(parities.reshape(S * 4, -1, big), rows).view(S, 4, 2, big).transpose(1, 2)
    close(sums.values, blocks.reshape(S, 8, big))


# dense layers


@pytest.mark.parametrize("period", [128, 32])
def test_dense(period):
    """Three blocks of rows, the last with 8; a bias for each output, or one for each of 32 channels."""
    rows, k, n = 40, 256, 128
    x, w, b = draw(rows, k), draw(k, n, seed=1, scale=0.1), draw(period, seed=2)
    out, sums = Row(rows, n), Row(1)
    x_row, w_row, b_row = held(x), held(w), held(b)
    launch(
        "dense", "dense_kernel", 3 * n // 32,
        x_row, w_row, b_row, out, out, sums, rows,
        x_row.stride, w_row.stride, b_row.stride, out.stride, sums.stride,
        K=k, N=n, PERIOD=period, BM=16, BN=32, BK=64, TRANSPOSED=False, GATED=False,
    )  # fmt: skip
    close(out.values, F.relu(x @ w + b.repeat(1, n // period)[:, None]))


def test_dense_data_gradient():
    rows, k, n = 40, 128, 256
    g, w, gate = draw(rows, k), draw(n, k, seed=1, scale=0.1), draw(rows, n, seed=3)
    gate[gate < -1] = 0
    out, sums, bias = Row(rows, n), Row(3, n), Row(1)
    g_row, w_row, gate_row = held(g), held(w), held(gate)
    launch(
        "dense", "dense_kernel", 3 * n // 64,
        g_row, w_row, bias, gate_row, out, sums, rows,
        g_row.stride, w_row.stride, bias.stride, out.stride, sums.stride,
        K=k, N=n, PERIOD=n, BM=16, BN=64, BK=64, TRANSPOSED=True, GATED=True,
    )  # fmt: skip
    expected = (g @ w.transpose(1, 2)) * (gate > 0)
    close(out.values, expected)
    close(sums.values, parts_of(expected, 16))


# where images are


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.double() / (1 if pixels.shape[2] == 1 else 255)


def end_weight(w: torch.Tensor) -> torch.Tensor:
    """As torch has it, of ``[C, 16, 32]``."""
    return w.view(-1, 4, 4, 32).permute(3, 0, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("at", [5, WINDOW + 1])
def test_batch(channels, at):
    """Images by their indices in the ring of steps; member 1 is a step behind."""
    pixels = images_of(channels, 4)[0]
    store = packed(pixels).to(DEVICE) if channels == 1 else pixels.reshape(4, -1).to(DEVICE)
    ahead = held(torch.zeros(S, WINDOW, 2, dtype=torch.int64))
    chosen = torch.tensor([[3, 1], [2, 2]])
    for s in range(S):
        ahead.row.view(S, WINDOW, 2)[s, (at - s) % WINDOW] = chosen[s].to(DEVICE)
    key = torch.tensor([[9, at], [9, at - 1]], device=DEVICE)
    expected = batch_of(pixels[chosen])
    out = Row(*expected.shape[1:], dtype=expected.dtype)
    launch(
        "conv_ends", "batch_kernel", out.row.shape[1] // 1024,
        store, ahead, key, out, 2, ahead.stride, out.stride,
        WINDOW=WINDOW, CHANNELS=channels, BITS=channels == 1, BLOCK=1024,
    )  # fmt: skip
    assert torch.equal(out.values, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_first_convolution(channels):
    pixels = images_of(channels)
    w, b = draw(channels, 16, 32, scale=0.1), draw(32, seed=1)
    batch, w_row, b_row, out = held(batch_of(pixels)), held(w), held(b), Row(2, 32, 32, 32)
    launch(
        "conv_ends", "first_conv_kernel", 8,
        batch, w_row, b_row, out, batch.stride, w_row.stride, b_row.stride, out.stride,
        CHANNELS=channels, BITS=channels == 1, EDGE=0, BM=256,
    )  # fmt: skip
    expected = per_member(
        lambda x, w, b: channels_last(F.relu(F.conv2d(x, end_weight(w), b, stride=2, padding=1))),
        scaled(pixels),
        w,
        b,
    )
    close(out.values, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operands", ["fp32", "tf32"])
def test_first_convolution_backward(channels, operands):
    """With the data gradient of the second, in whose place it is; that gradient is an operand, and rounded as one."""
    rounds = rounder(operands)
    pixels, programs = images_of(channels), 4
    w1, b1 = rounds(draw(channels, 16, 32, scale=0.3)), draw(32, seed=1, scale=0.3)
    w2, g2 = rounds(draw(16, 32, 32, seed=2, scale=0.1)), rounds(draw(2, 16, 16, 32, seed=3))
    batch, rows = held(batch_of(pixels)), [held(x) for x in (w1, b1, w2, g2)]
    gw, gb, found = Row(programs, channels, 16, 32), Row(programs, 32), flags()
    launch(
        "conv_ends", "up_first_conv_kernel", programs,
        batch, *rows, gw, gb, found, 2 * 256,
        batch.stride, *(row.stride for row in rows), gw.stride, gb.stride,
        CHANNELS=channels, BITS=channels == 1, EDGE=0, BM=128, TF32=operands == "tf32",
    )  # fmt: skip
    for s in range(S):
        x, w = scaled(pixels)[s], end_weight(w1[s])
        g = F.conv_transpose2d(maps(g2[s]), weight(w2[s], 4), stride=2, padding=1)
        g = g * (F.conv2d(x, w, b1[s], stride=2, padding=1) > 0)
        expected = torch.nn.grad.conv2d_weight(x, w.shape, rounds(g), stride=2, padding=1)
        # of a sum in another order, one operand in a thousand is the next one
        bound = 2e-6 if operands == "fp32" else 2e-5
        assert error(end_weight(gw.values[s].sum(0)), expected) < bound
        assert error(gb.values[s].sum(0), g.sum((0, 2, 3))) < 2e-6
    assert found.tolist() == [0, 0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_loss(channels, scale):
    """Logits of a few, and of hundreds."""
    images, rows, tiles = 1, 128, 2
    pixels = images_of(channels, images)
    h, w = F.relu(draw(images, 32, 32, 32)), draw(channels, 16, 32, seed=1, scale=scale)
    b = draw(channels, seed=2)
    batch, h_row, w_row, b_row = held(batch_of(pixels)), held(h), held(w), held(b)
    dl, nll, gb, found = Row(images, channels, 64, 64), Row(tiles, channels), Row(tiles, 16), flags()
    launch(
        "conv_ends", "loss_kernel", tiles * channels,
        batch, h_row, w_row, b_row, dl, nll, gb, found, images * 256,
        batch.stride, h_row.stride, w_row.stride, b_row.stride, dl.stride, nll.stride, gb.stride,
        CHANNELS=channels, BITS=channels == 1, EDGE=0, BM=rows,
    )  # fmt: skip
    logits = per_member(
        lambda h, w, b: F.conv_transpose2d(maps(h), end_weight(w), b, stride=2, padding=1), h, w, b
    )
    if scale > 1:
        assert logits.abs().max() > 150
    x = scaled(pixels)
    each = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    slope = torch.sigmoid(logits) - x
    # blocks of 4 x 4 pixels, tile by tile
    blocks = lambda v: v.unflatten(3, (16, 4)).sum(4).unflatten(4, (16, 4)).sum(5)  # noqa: E731
    by_tile = lambda v: blocks(v).transpose(1, 2).reshape(S, channels, tiles, -1).sum(-1).transpose(1, 2)  # noqa: E731
    close(nll.values, by_tile(each))
    torch.testing.assert_close(dl.values, slope, rtol=1e-5 if scale < 1 else 1e-4, atol=1e-6 * max(1, scale))
    close(gb.values[..., :channels], by_tile(slope), 2e-5)
    assert (gb.values[..., channels:] == 0).all()
    assert found.tolist() == [0, 0]


def test_loss_of_rows_that_do_not_fill_a_tile():
    """Of 200 blocks of 4 x 4 pixels."""
    rows, tile = 200, 128
    pixels = images_of(1, 1)
    h, w, b = F.relu(draw(1, 32, 32, 32)), draw(1, 16, 32, seed=1, scale=0.1), draw(1, seed=2)
    batch, h_row, w_row, b_row = held(batch_of(pixels)), held(h), held(w), held(b)
    dl, nll, gb, found = Row(1, 1, 64, 64), Row(2, 1), Row(2, 16), flags()
    launch(
        "conv_ends", "loss_kernel", 2,
        batch, h_row, w_row, b_row, dl, nll, gb, found, rows,
        batch.stride, h_row.stride, w_row.stride, b_row.stride, dl.stride, nll.stride, gb.stride,
        CHANNELS=1, BITS=True, EDGE=0, BM=tile,
    )  # fmt: skip
    logits = per_member(
        lambda h, w, b: F.conv_transpose2d(maps(h), end_weight(w), b, stride=2, padding=1), h, w, b
    )
    x = scaled(pixels)
    each = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    slope = torch.sigmoid(logits) - x
    for found_sums, v in ((nll.values[..., 0], each), (gb.values[..., 0], slope)):
        blocks = v.view(S, 16, 4, 16, 4).sum((2, 4)).view(S, 256)[:, :rows]
        close(found_sums, torch.stack([part.sum(1) for part in blocks.split(tile, 1)], 1), 1e-5)
    written = ~dl.values.isnan()
    assert torch.equal(
        written.view(S, 16, 4, 16, 4).all(4).all(2).view(S, 256).sum(1), torch.tensor([rows] * S)
    )
    assert torch.equal(written.flatten(1).sum(1), torch.tensor([rows * 16] * S))


@pytest.mark.parametrize("channels", [1, 3])
def test_loss_backward(channels):
    programs, rows = 8, 256
    h, w = draw(2, 32, 32, 32), draw(channels, 16, 32, seed=1, scale=0.1)
    h = F.relu(h)
    dl = draw(2, channels, 64, 64, seed=2)
    h_row, w_row, dl_row = held(h), held(w), held(dl)
    g, gw, sums, found = Row(2, 32, 32, 32), Row(programs, channels, 16, 32), Row(programs, 32), flags()
    launch(
        "conv_ends", "loss_backward_kernel", programs,
        h_row, w_row, dl_row, g, gw, sums, found,
        h_row.stride, w_row.stride, dl_row.stride, gw.stride, sums.stride,
        CHANNELS=channels, EDGE=0, BM=rows,
    )  # fmt: skip
    for s in range(S):
        a, v = h[s].clone().requires_grad_(), w[s].clone().requires_grad_()
        F.conv_transpose2d(maps(a), end_weight(v), stride=2, padding=1).backward(dl[s])
        expected = a.grad * (h[s] > 0)
        assert error(g.values[s], expected) < 2e-6
        assert error(gw.values[s].sum(0), v.grad) < 2e-6
        close(sums.values[s : s + 1], parts_of(expected.view(1, -1, 32), rows))
    assert found.tolist() == [0, 0]


# latents


class Latents:
    """x -> mu, logvar -> z -> relu(z W + b) of D latents in P columns, by kernels and by autograd."""

    ROWS, K, N, BLOCK = 21, 64, 128, 16
    """Images, in two blocks, of which the second is not full."""

    def __init__(self, d: int) -> None:
        self.d, self.p = d, padded(d)
        self.z_width = z_width(d)
        k, n, p = self.K, self.N, self.p
        self.x = F.relu(draw(self.ROWS, k))
        self.wh, self.bh = draw(k, 2, d, seed=1, scale=0.1), draw(2, d, seed=2, scale=0.5)
        self.wd, self.bd = draw(n, d, seed=3, scale=0.3), draw(n, seed=4)
        # what is padded is never read for anything
        self.wh_row = held(F.pad(self.wh, (0, p - d)))
        self.bh_row = held(F.pad(self.bh, (0, p - d), value=3.0))
        self.wd_row, self.bd_row = held(F.pad(self.wd, (0, self.z_width - d))), held(self.bd)
        self.x_row = held(self.x)
        self.key = torch.tensor([[77, 4], [-3, 2**33 + 1]], device=DEVICE)
        self.stats, self.z = Row(3, self.ROWS, p), Row(self.ROWS, self.z_width)
        self.kl, self.y, self.flags = Row(2, p), Row(self.ROWS, n), flags()

    def constants(self) -> dict:
        return {
            "BM": self.BLOCK,
            "K": self.K,
            "N": self.N,
            "P": self.p,
            "Z": self.z_width,
            "BK": 32,
            "BN": 64,
        }

    def forward(self, decodes: bool = True, stream: Stream = Stream.POSTERIOR) -> None:
        launch(
            "latents", "latents_kernel", 2,
            self.x_row, self.wh_row, self.bh_row, self.wd_row, self.bd_row, self.key,
            self.stats, self.z, self.kl, self.y, self.flags, self.ROWS, self.d,
            self.x_row.stride, self.wh_row.stride, self.bh_row.stride, self.wd_row.stride, self.bd_row.stride,
            self.stats.stride, self.z.stride, self.kl.stride, self.y.stride,
            **self.constants(), STREAM=int(stream), DECODES=decodes,
        )  # fmt: skip

    def eps(self, s: int, stream: Stream = Stream.POSTERIOR) -> torch.Tensor:
        return normal(make_key(*self.key[s].tolist()), self.ROWS, self.d, stream, torch.float64)

    def reference(self, s: int, x: torch.Tensor, stream: Stream = Stream.POSTERIOR):
        """mu, logvar, z, KL, output of member ``s``."""
        mu, logvar = (x @ self.wh[s][:, i] + self.bh[s][i] for i in (0, 1))
        z = mu + torch.exp(0.5 * logvar) * self.eps(s, stream)
        return mu, logvar, z, 0.5 * (mu.square() + logvar.exp() - 1 - logvar), z @ self.wd[s].t() + self.bd[s]


@pytest.mark.parametrize("d", [1, 6, 10, 16, 17, 32, 50])
def test_latents(d):
    its = Latents(d)
    its.forward()
    for s in range(S):
        *stats, kl, y = its.reference(s, its.x[s])
        for found, expected in zip(its.stats.values[s], stats, strict=True):
            assert error(found[:, :d], expected) < 2e-6
            assert (found[:, d:] == 0).all()
        assert error(its.z.values[s][:, :d], stats[2]) < 2e-6
        assert (its.z.values[s][:, d:] == 0).all()
        blocks = parts_of(kl[None], its.BLOCK)[0] / its.ROWS
        torch.testing.assert_close(its.kl.values[s][:, :d], blocks, rtol=1e-5, atol=1e-6)
        assert (its.kl.values[s][:, d:] == 0).all()
        assert error(its.y.values[s], F.relu(y)) < 2e-6
    assert its.flags.tolist() == [0, 0]


def test_latents_that_are_not_decoded():
    """Nothing but mu, logvar, z and the KL is written, from another stream of noise."""
    its = Latents(10)
    its.forward(decodes=False, stream=Stream.SECOND_POSTERIOR)
    for s in range(S):
        expected = its.reference(s, its.x[s], Stream.SECOND_POSTERIOR)
        for found, value in zip(its.stats.values[s], expected[:3], strict=True):
            assert error(found[:, :10], value) < 2e-6
    assert its.z.values.isnan().all()
    assert its.y.values.isnan().all()


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("d", [1, 6, 10, 17, 32, 50])
def test_latents_backward(d, extra):
    its = Latents(d)
    its.forward()
    gy, others = draw(its.ROWS, its.N, seed=7), draw(3, its.ROWS, d, seed=8)
    # what is beside the latents there is not theirs
    gy_row, extra_row = held(gy), held(F.pad(others, (0, its.p - d), value=5.0))
    weights = torch.tensor([4.0, -0.5], device=DEVICE)
    gstats, gx = Row(its.ROWS, 2, its.p), Row(its.ROWS, its.K)
    # in one buffer, since they have one stride
    gx_row, x_row = gx, its.x_row
    assert gx_row.stride == x_row.stride
    gbh, gbx = Row(2, 2, its.p), Row(2, its.K)
    launch(
        "latents", "latents_backward_kernel", 2,
        gy_row, its.wd_row, its.wh_row, its.stats, extra_row, its.key, weights, x_row, gstats, gx_row, gbh, gbx,
        its.ROWS, d,
        gy_row.stride, its.wd_row.stride, its.wh_row.stride, its.stats.stride, x_row.stride, gstats.stride,
        gbh.stride, gbx.stride,
        **its.constants(), STREAM=int(Stream.POSTERIOR), EXTRA=extra,
    )  # fmt: skip
    for s in range(S):
        x = its.x[s].clone().requires_grad_()
        mu, logvar, z, kl, y = its.reference(s, x)
        mu.retain_grad(), logvar.retain_grad()
        loss = (y * gy[s]).sum() + float(weights[s]) * kl.sum()
        if extra:
            loss = loss + sum((g * v).sum() for g, v in zip(others[s], (mu, logvar, z), strict=True))
        loss.backward()
        expected = torch.stack([mu.grad, logvar.grad], 1)
        assert error(gstats.values[s][..., :d], expected) < 5e-6
        assert (gstats.values[s][..., d:] == 0).all()
        assert error(gbh.values[s][..., :d], parts_of(expected.flatten(1)[None], 16)[0].view(2, 2, d)) < 5e-6
        assert (gbh.values[s][..., d:] == 0).all()
        gated = x.grad * (its.x[s] > 0)
        assert error(gx.values[s], gated) < 5e-6
        assert error(gbx.values[s], parts_of(gated[None], 16)[0]) < 5e-6


# weight gradients


@pytest.mark.parametrize("architecture", ["kim", "locatello", "beta-vae-h"])
def test_weight_gradients(architecture):
    """Of three images in parts of 128 positions, of which 8 x 8 maps have one and a half: all layers but the ends, from
    activations that are drawn."""
    tiles = Tiles(positions=128, positions_k=64)
    plan = plan_of(architecture, 1, 3, tiles=tiles)
    members = members_of(plan, [One(0)], architecture)
    row = members.buffers["activations"][0]
    row.copy_(torch.randn(row.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE))
    [its] = [x for x in plan.backward if x.label == "weight gradients"]
    members.launch([its])
    net, at = plan.network, plan.activations
    values = row.cpu().double()

    def lies(name: str, *shape: int) -> torch.Tensor:
        return values[at[name] : at[name] + 3 * torch.Size(shape).numel()].view(3, *shape)

    def summed(name: str, *shape: int) -> torch.Tensor:
        lie = plan.gradients[f"{name}.weight"]
        size = plan.layout.parameters[f"{name}.weight"].size
        parts = (
            members.buffers["gradients"][0, lie.offset : lie.offset + lie.parts * lie.stride].cpu().double()
        )
        return parts.view(lie.parts, lie.stride)[:, :size].sum(0).view(shape)

    def pair(p, big: str, small: str) -> None:
        x = maps(lies(big, 2 * p.side, 2 * p.side, p.big))
        g = maps(lies(small, p.side, p.side, p.small))
        w = torch.nn.grad.conv2d_weight(
            x, (p.small, p.big, p.taps, p.taps), g, stride=2, padding=p.taps // 2 - 1
        )
        found = weight(summed(p.name, p.taps**2, p.big, p.small), p.taps)
        assert error(found, w) < 2e-6, p

    parts = {plan.gradients[f"{p.name}.weight"].parts for p in net.down}
    assert parts == {1, 2, 6}
    below = net.first
    for p in net.down:
        pair(p, below, f"{p.name}'")
        below = p.name
    below = net.decode[-1].name
    for p in net.up:
        pair(p, f"{p.name}'", below)
        below = p.name
    chains = (
        (net.encode, net.down[-1].name),
        (net.decode, net.decode_first),
    )
    for layers, below in chains:
        for dense in layers:
            expected = lies(below, dense.inputs).t() @ lies(f"{dense.name}'", dense.outputs)
            assert error(summed(dense.name, dense.inputs, dense.outputs), expected) < 2e-6, dense
            below = dense.name
    expected = lies(net.encode[-1].name, net.width_in).t() @ lies(f"{net.head}'", 32)
    assert error(summed(net.head, net.width_in, 32), expected) < 2e-6
    expected = lies(f"{net.decode_first}'", net.width_out).t() @ lies("z", 32)
    assert error(summed(net.decode_first, net.width_out, 32), expected) < 2e-6
    assert members.buffers["flags"].tolist() == [[0]]
