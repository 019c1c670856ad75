"""Every op and every other kernel against its float64 reference, forward and gradient; whole steps against the CPU's;
and the device's integers against the CPU's."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import pyvae
from gpu_stages.cases import Cases, refuse_reference
from pyvae import reference
from pyvae.control import Control
from pyvae.data import binarised
from pyvae.data.dataset import Dataset
from pyvae.engine import adam
from pyvae.engine.adam import Adam, moved
from pyvae.engine.arithmetic import settle_arithmetic
from pyvae.engine.batches import BatchOrder
from pyvae.engine.binarise import binarise
from pyvae.engine.controller import controller
from pyvae.engine.draw import draw
from pyvae.engine.ledger import Ledger
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import Stepper
from pyvae.engine.training import training
from pyvae.nets import bias_activation, build
from pyvae.objectives import ControlVAE, InfoWGANGP
from pyvae.ops.permute_dims import tc_batch
from pyvae.random import Stream, bits, data_order, make_key, normal, uniform
from test_trainer import OBJECTIVES, recipe_of
from tiny import packed_data

# largest |ours - float64| / |float64|, of the inputs' dtype
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
STEP = 2**33 + 3
Values = dict[str, Any]


def _relative(ours: Tensor, right: Tensor) -> float:
    right = right.detach().double()
    return float((ours.detach().double() - right).norm() / right.norm().clamp_min(1e-30))


def _judged(ours: Sequence[Tensor], right: Sequence[Tensor], tolerance: float) -> Values:
    """Whether each result is near as a whole, and each of its elements on the scale of the largest."""
    errors = []
    for a, b in zip(ours, right, strict=True):
        if a.shape != b.shape:
            return {"ok": False, "error": f"a result has shape {tuple(a.shape)}, not {tuple(b.shape)}"}
        whole, element = _relative(a, b), 0.0
        if a.numel():
            exact = b.detach().double()
            largest = exact.abs().max().clamp_min(1e-30)
            element = float((a.detach().double() - exact).abs().max() / largest)
        # an element may be off by several roundings of the dtype where all together are by less than one
        errors.append(max(whole, element / 4))
    # NaN is never below
    return {"ok": all(error < tolerance for error in errors), "errors": [float(f"{e:.3g}") for e in errors]}


def _equal(ours: Sequence[Tensor], right: Sequence[Tensor]) -> Values:
    differ = [
        i for i, (a, b) in enumerate(zip(ours, right, strict=True)) if not torch.equal(a.cpu(), b.cpu())
    ]
    return {"ok": not differ, **({"error": f"results {differ} differ"} if differ else {})}


def _several(x: Any) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _against(
    ours: Callable[..., Any], right: Callable[..., Any], inputs: list[Tensor], tolerance: float
) -> Values:
    exact = [x.detach().double().requires_grad_() for x in inputs]
    mine, expected = _several(ours(*inputs)), _several(right(*exact))
    upstream = [torch.randn_like(x) for x in mine]
    gradients = torch.autograd.grad(mine, inputs, upstream)
    exact_gradients = torch.autograd.grad(expected, exact, [u.double() for u in upstream])
    return _judged((*mine, *gradients), (*expected, *exact_gradients), tolerance)


def ops_agree(case: Cases) -> None:
    """Each op in each dtype, at a size of training and, but in a dry run, at one that fills the device."""
    device = case.device
    if case.dry:
        os.environ["PYVAE_BACKEND"] = "triton"  # in the interpreter
    torch.manual_seed(0)
    key = make_key(7, STEP, device)
    # that no block divides, and as in training
    sizes = {"small": (7, 250)} if case.dry else {"small": (61, 4091), "large": (2048, 4096)}
    samples = (2, 3) if case.dry else (2, 5)

    def random(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype).requires_grad_()

    for size, (batch, pixels) in sizes.items():
        x = torch.rand(batch, pixels, device=device) < 0.3
        packed = reference.pack_bits(x)
        targets = {
            "bits": (packed, None),
            "floats": (x.float(), None),
            "bytes": (x.to(torch.uint8) * 255, 255),
        }
        for dtype, tolerance in TOLERANCES.items():
            name = f"{str(dtype).removeprefix('torch.')}, {size}"

            def check(
                op: str,
                shapes: list[tuple[int, ...]],
                *,
                fixed: Callable[..., Any] = lambda call, *inputs: call(*inputs),
                ours: Callable[..., Any] | None = None,
                what: str = "",
                dtype: torch.dtype = dtype,
                tolerance: float = tolerance,
                name: str = name,
            ) -> None:
                mine, right = ours or getattr(pyvae, op), getattr(reference, op)

                def call() -> Values:
                    refuse_reference("permute_dims" if op == "tc_batch" else op, device, dtype)
                    return _against(
                        lambda *inputs: fixed(mine, *inputs),
                        lambda *inputs: fixed(right, *inputs),
                        [random(*shape, dtype=dtype) for shape in shapes],
                        tolerance,
                    )

                case(f"{op}{what}, {name}", call)

            posterior = (batch, 10)
            check("reparameterize_kl", [posterior] * 2, fixed=lambda f, m, v: f(m, v, key=key))
            for kind, (target, most) in targets.items():
                check(
                    "bernoulli_nll",
                    [(batch, pixels)],
                    fixed=lambda f, logits, t=target, most=most: f(logits, t, target_max=most),
                    what=f" of {kind}",
                )
            for weighting in ("mws", "mss"):
                check(
                    "aggregate_log_density",
                    [posterior] * 3,
                    fixed=lambda f, z, m, v, w=weighting: f(z, m, v, dataset_size=737_280, weighting=w),
                    what=f" {weighting}",
                )
            drawn = (min(batch, 256), *samples)
            check(
                "importance_log_weight",
                [(*drawn, pixels), (*drawn, 10), (drawn[0], 10), (drawn[0], 10)],
                fixed=lambda f, logits, z, m, v, t=packed[: drawn[0]]: f(logits, t, z, m, v),
            )
            check("tc_batch", [posterior] * 2, fixed=lambda f, z, z2: f(z, z2, key=key), ours=tc_batch)
    case("posterior_entropy", lambda: _entropies(device, (3, 2, 4) if case.dry else (3, 6, 10, 8)))


def _entropies(device: torch.device, sizes: tuple[int, ...]) -> Values:
    refuse_reference("posterior_entropy", device)
    rows = torch.Size(sizes).numel()
    mu, logvar = torch.randn(2, rows, 10, device=device)
    ours = pyvae.posterior_entropy(mu, logvar - 2, sizes)
    right = reference.posterior_entropy(mu.double(), logvar.double() - 2, sizes)
    pairs = zip((ours.marginal, *ours.conditional), (right.marginal, *right.conditional), strict=True)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    return {"ok": worst < 2e-5, "worst_nats": worst}


def steps_agree(case: Cases) -> None:
    """The engine's own kernels against plain torch, and two steps of every objective against the CPU's."""
    if case.dry:
        os.environ["PYVAE_BACKEND"] = "triton"
        adam._block = lambda weights: 2**16  # five hundred programs are too many for the interpreter
    settle_arithmetic("fp32")  # or cuDNN's own choice of kernels would differ from call to call
    case("ledger", lambda: _ledger(case.device))
    case("controller", lambda: _controller(case.device))
    for shape in (
        [(2, 33, 9, 8)] if case.dry else [(64, 32, 32, 32), (64, 1, 64, 64), (2048, 256), (7, 33, 40, 41)]
    ):
        case(f"bias_activation of {shape}", lambda shape=shape: _bias_activation(shape, case.device))
    for dtype in (torch.float32, torch.bfloat16):
        case(f"layers in {dtype}", lambda dtype=dtype: _layers(dtype, 2 if case.dry else 64, case.device))
    for precision in ("fp32", "bf16"):
        case(f"norm and Adam, {precision}", lambda p=precision: _adam(case, p))
    case("draws of a GAN", lambda: _draws(case.device))
    data = packed_data()
    objectives = dict(list(OBJECTIVES.items())[:1]) if case.dry else OBJECTIVES
    for name, objective in objectives.items():
        recipe = replace(recipe_of(objective), batch_size=4) if case.dry else recipe_of(objective)
        case(f"{name} as on a CPU", lambda recipe=recipe: _as_on_a_cpu(recipe, data, case.device))


def _as_on_a_cpu(recipe: Recipe, data: Dataset, device: torch.device) -> Values:
    """The second step is that of weights which Adam moved: where a gradient is all but nothing, by its rounding."""
    there = training(recipe, data, device)
    mine = _rows(there)
    # plain torch at home: what is compared is the whole of the kernels
    os.environ["PYVAE_BACKEND"], before = "reference", os.environ.get("PYVAE_BACKEND")
    try:
        right = _rows(training(recipe, data, torch.device("cpu")))
    finally:
        os.environ["PYVAE_BACKEND"] = before or "auto"
    worst = [float(((a - b).abs() / (b.abs() + 1e-3)).max()) for a, b in zip(mine, right, strict=True)]
    return {"ok": worst[0] < 2e-3 and worst[1] < 5e-2, "errors": worst}


def _rows(trainer: Stepper) -> list[Tensor]:
    found = []
    for _ in range(2):
        trainer.advance()
        found.append(trainer.ledger.row.cpu().clone())
    return found


def _ledger(device: torch.device) -> Values:
    """Twelve steps, the eighth of them not finite, by the kernel and by plain torch."""

    def play(triton: bool) -> list[Tensor]:
        control = ControlVAE().initial_control(device)
        ledger = Ledger([str(i) for i in range(11)], 7, rows=4, log_every=3, device=device, control=control)
        ledger._triton = triton
        found = []
        for step in range(12):
            generator = torch.Generator().manual_seed(step)
            values = [torch.randn((), generator=generator).to(device) for _ in range(6)]
            if step == 7:
                values[2] = values[2] * float("nan")
            moved = Control(*(x + step for x in ControlVAE().initial_control(device)))
            found.append(ledger.settle(values, torch.randn(5, generator=generator).to(device), moved))
        kept = (ledger.key, ledger.row, ledger.bad_step, ledger.bad_row, *control, ledger.ring.rows[:-1])
        return [x.double().nan_to_num(nan=-9.0) for x in (*found, *kept)]

    return _equal(play(True), play(False))


def _bias_activation(shape: tuple[int, ...], device: torch.device) -> Values:
    """Near float64, and the same bits whichever program comes last."""
    relu = bias_activation.Activation("relu")
    y, grad = (torch.randn(shape, device=device) for _ in range(2))
    if y.ndim == 4:
        y = y.contiguous(memory_format=torch.channels_last)
    tickets = torch.zeros(bias_activation.ticket_count(shape[1]), dtype=torch.int32, device=device)
    found = []
    for _ in range(3 if device.type == "cpu" else 300):
        found.append((torch.empty_like(y), torch.empty(shape[1], device=device)))
        bias_activation.backward(grad, y, relu, *found[-1], tickets)
    right = bias_activation.plain_backward(grad.double(), y.double(), relu, shape[1])
    judged = _judged(found[0], right, TOLERANCES[torch.float32])
    alike = all(torch.equal(a, b) for each in found for a, b in zip(each, found[0], strict=True))
    return {**judged, "ok": judged["ok"] and alike and not tickets.any(), "alike": alike}


def _layers(dtype: torch.dtype, batch: int, device: torch.device) -> Values:
    """A network against its layers one by one, and whether NaN goes through it."""
    net = build("burgess", 1, 10).to(device, memory_format=torch.channels_last)
    images = torch.rand(batch, 1, 64, 64, device=device)

    def gradients(x: Tensor) -> list[Tensor]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            y = net.decoder(net.encoder(x)[0]).float()
        return [y.detach(), *torch.autograd.grad(y.square().mean(), [*net.decoder.parameters()])]

    mine, again = gradients(images), gradients(images)
    os.environ["PYVAE_BACKEND"], before = "reference", os.environ.get("PYVAE_BACKEND")
    try:
        right = gradients(images)
    finally:
        os.environ["PYVAE_BACKEND"] = before or "auto"
    images[1, 0, 5, 5] = float("nan")
    through = gradients(images)[0][1].isnan().all()
    alike = all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))
    judged = _judged(mine, right, 1e-3 if dtype == torch.float32 else 0.2)
    return {**judged, "ok": judged["ok"] and alike and bool(through), "alike": alike, "nan": bool(through)}


def _controller(device: torch.device) -> Values:
    worst = 0.0
    for objective in (
        ControlVAE(),
        ControlVAE(schedule="adaptive", capacity_steps=80),
        ControlVAE(schedule="linear", capacity_steps=70, proportional="linear", beta_max=1.05),
    ):
        step_once = controller(objective, device)
        if step_once == objective.control:
            return {"ok": False, "error": "the controller runs as plain torch"}
        mine = plain = objective.initial_control(device)
        for step in range(100):
            kl = (plain.capacity.float() + 3 * torch.randn((), device=device)).abs()
            at = torch.tensor(step, device=device)
            mine, plain = step_once(mine, kl, at), objective.control(plain, kl, at)
            worst = max([worst, *(float((a - b).abs()) for a, b in zip(mine, plain, strict=True))])
    return {"ok": worst < 1e-12, "worst": worst}


def _adam(case: Cases, precision: str) -> Values:
    """Norms and weights of some steps against float64; twice, which must be equal bit for bit: who arrives last adds
    the partial sums of the norm."""
    device, steps = case.device, 1 if case.dry else 40

    def play() -> tuple[list[Tensor], list[float]]:
        net = build("burgess", 1, 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = Adam(net.parameters(), 1e-3)
        weights = [p.detach().double() for p in net.parameters()]
        moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
        leaves = [optimizer.rounded(p) if precision == "bf16" else p for p in net.parameters()]
        generator = torch.Generator().manual_seed(0)
        norms, worst = [], 0.0
        for step in range(1, steps + 1):
            for leaf in leaves:
                gradient = torch.randn(leaf.shape, generator=generator).to(device, leaf.dtype)
                leaf.grad = torch.empty_like(leaf).copy_(gradient)
            norms.append(optimizer.norm())
            exact = torch.stack([leaf.grad.double().square().sum() for leaf in leaves]).sum().sqrt()
            worst = max(worst, _relative(norms[-1], exact))
            optimizer.step()
            for n, leaf in enumerate(leaves):
                weights[n], *moments[n] = moved(weights[n], leaf.grad.double(), *moments[n], step, lr=1e-3)
        found = [p.detach() for p in net.parameters()]
        errors = [worst, max(_relative(a, b) for a, b in zip(found, weights, strict=True))]
        if precision == "bf16" and not case.dry:  # the interpreter cuts off where a GPU rounds
            # the copies are the rounded weights
            errors.append(float(sum((a.to(b.dtype) != b).sum() for a, b in zip(found, leaves, strict=True))))
        return [*norms, *found], errors

    (one, errors), (two, _) = play(), play()
    same = _equal(one, two)
    same["ok"] &= all(error < 1e-5 for error in errors)
    return {**same, "errors": errors}


def _draws(device: torch.device) -> Values:
    """Codes, categories and points are the CPU's to the last bit, noise is through another logarithm."""
    objective, here = InfoWGANGP(), torch.device("cpu")
    there, right = (draw(objective, make_key(5, STEP, d), 300, 200) for d in (device, here))
    found = _equal(
        [there.inputs[:, 5:], there.codes.category, there.points],
        [right.inputs[:, 5:], right.codes.category, right.points],
    )
    worst = float((there.codes.noise.cpu() - right.codes.noise).abs().max())
    return {**found, "ok": found["ok"] and worst < 1e-5, "worst_noise": worst}


def integers(case: Cases) -> None:
    """What is drawn and counted on the device equals what a CPU draws and counts, to the last bit."""
    here, there = torch.device("cpu"), case.device
    if case.dry:
        os.environ["PYVAE_BACKEND"] = "native"
    keys = [make_key(seed, step) for seed in (0, -1, 12345678901234567) for step in (0, 2**32 - 1, STEP)]

    def both(call: Callable[[torch.device], Any]) -> Values:
        return _equal(_several(call(there)), _several(call(here)))

    case("words", lambda: both(lambda d: tuple(bits(k.to(d), 300, 7, 1) for k in keys)))
    case("uniforms", lambda: both(lambda d: tuple(uniform(k.to(d), 300, 7, 1) for k in keys)))
    case("normals, nearly", lambda: _normals(keys, there))
    case(
        "order of the data",
        lambda: both(lambda d: data_order(keys[4].to(d), torch.arange(5000, device=d), 5000)),
    )
    for replacement in (False, True):
        case(
            f"batches {'with' if replacement else 'without'} replacement",
            lambda r=replacement: both(
                lambda d: BatchOrder(3, 737_280, 64, d, replacement=r).draw(11_500, 64),
            ),
        )
    z = torch.randn(2, 3, 300, 5, generator=torch.Generator().manual_seed(0))
    case(
        "permutations",
        lambda: both(
            _needs("permute_dims", there, lambda d: tc_batch(z[0].to(d), z[1].to(d), key=keys[3].to(d)))
        ),
    )
    grey = torch.rand(64, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    case(
        "binarised images",
        lambda: _equal(
            [binarise(grey.to(there), keys[5][0].to(there), keys[5][1].to(there), Stream.BINARISATION)],
            [binarised.binarise(grey, keys[5], Stream.BINARISATION)],
        ),
    )
    store = torch.randint(256, (64, 512), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    index = torch.randint(64, (37,), generator=torch.Generator().manual_seed(3))
    case(
        "gathered bits",
        lambda: both(
            _needs("gather_bits", there, lambda d: pyvae.gather_bits(store.to(d), index.to(d), pixels=4091))
        ),
    )
    sizes = (3, 6, 8, 4) if case.dry else (3, 6, 40, 32)
    codes = torch.randn(torch.Size(sizes).numel(), 10, generator=torch.Generator().manual_seed(4))
    case(
        "counts",
        lambda: both(
            _needs("code_histogram", there, lambda d: tuple(pyvae.code_histogram(codes.to(d), None, sizes)))
        ),
    )


def _needs(op: str, device: torch.device, call: Callable[..., Any]) -> Callable[..., Any]:
    def checked(on: torch.device) -> Any:
        refuse_reference(op, device)
        return call(on)

    return checked


def _normals(keys: list[Tensor], device: torch.device) -> Values:
    # the same words, through the logarithm of either library
    drawn = [(normal(k.to(device), 300, 7, 1).cpu(), normal(k, 300, 7, 1)) for k in keys]
    worst = max(float((a - b).abs().max()) for a, b in drawn)
    return {"ok": worst < 1e-5, "worst": worst}
