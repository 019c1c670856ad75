"""Every transform that torch offers, around every op: right, or refused with a line that says so. docs/transforms.md
is the table of it."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.checkpoint import checkpoint

import pyvae
from pyvae import backend, reference
from pyvae.nets.layers import Layers
from pyvae.random import make_key
from pyvae.reference import pack_bits

DOCS = Path(__file__).resolve().parents[1] / "docs/transforms.md"
KEY = make_key(3, 5)
BATCH = 4


class Case(NamedTuple):
    """An op as a function of floats ``[batch, ...]``, which may have derivatives, and of others."""

    make: Callable[[int, torch.dtype], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
    call: Callable[..., object]
    """``call(module, *floats, *others)`` of the op in that module."""


def floats(*shapes):
    def make(batch, dtype):
        g = torch.Generator().manual_seed(batch)
        return tuple(torch.randn(batch, *s, generator=g, dtype=torch.float64).to(dtype) for s in shapes)

    return make


def bits(batch, pixels):
    return pack_bits(torch.rand(batch, pixels, generator=torch.Generator().manual_seed(batch)) < 0.5)


def with_key(*shapes):
    return lambda batch, dtype: (floats(*shapes)(batch, dtype), (KEY,))


def aggregate(weighting):
    return lambda module, *inputs: module.aggregate_log_density(*inputs, dataset_size=50, weighting=weighting)


OPS = {
    "aggregate_log_density": Case(lambda *at: (floats(*[(3,)] * 3)(*at), ()), aggregate("mws")),
    "aggregate_log_density, stratified": Case(lambda *at: (floats(*[(3,)] * 3)(*at), ()), aggregate("mss")),
    "bernoulli_nll": Case(
        lambda batch, dtype: (
            floats((2, 3))(batch, dtype),
            (floats((2, 3))(batch, torch.float32)[0].sigmoid(),),
        ),
        lambda module, logits, x: module.bernoulli_nll(logits, x),
    ),
    "bernoulli_nll, bits": Case(
        lambda batch, dtype: (floats((9,))(batch, dtype), (bits(batch, 9),)),
        lambda module, logits, x: module.bernoulli_nll(logits, x, reduction="none"),
    ),
    "gather_bits": Case(
        lambda batch, dtype: ((), (bits(13, 10), torch.arange(batch) % 13)),
        lambda module, store, index: module.gather_bits(store, index, pixels=10),
    ),
    "importance_log_weight": Case(
        lambda batch, dtype: (
            floats((2, 2, 5), (2, 2, 3), (3,), (3,))(batch, dtype),
            (bits(batch, 5),),
        ),
        lambda module, logits, z, mu, logvar, x: module.importance_log_weight(logits, x, z, mu, logvar),
    ),
    "permute_dims": Case(with_key((3,)), lambda module, z, key: module.permute_dims(z, key=key)),
    "reparameterize_kl": Case(
        with_key((3,), (3,)), lambda module, mu, logvar, key: module.reparameterize_kl(mu, logvar, key=key)
    ),
    "tc_batch": Case(with_key((3,), (3,)), lambda module, z, z2, key: module.tc_batch(z, z2, key=key)),
    "code_histogram": Case(
        lambda *at: (floats((2,))(*at), ()),
        lambda module, codes: module.code_histogram(codes, None, (2, len(codes) // 2), bins=3),
    ),
    "posterior_entropy": Case(
        lambda *at: (floats((2,), (2,))(*at), ()),
        lambda module, mu, logvar: module.posterior_entropy(mu, logvar, (2, len(mu) // 2), nodes=64),
    ),
}
METRICS = ("code_histogram", "posterior_entropy")
"""They read values, and have no derivative."""
DIFFERENTIABLE = [op for op in OPS if op not in (*METRICS, "gather_bits")]


class Trial:
    """An op, its inputs, and what plain torch makes of them, without any transform."""

    def __init__(self, op, dtype):
        self.case, self.dtype = OPS[op], dtype
        self.differentiable = op not in METRICS
        self.inputs, self.others = self.case.make(BATCH, dtype)
        self.tolerance = (
            {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
        )

    def ours(self, *inputs):
        return self.of_all(*inputs, *self.others)

    def of_all(self, *args):
        return tuple(tree_flatten(self.case.call(pyvae, *args))[0])

    def exact(self, batch=BATCH):
        """Outputs of the reference in float64, of inputs that want gradients if it has any, and those."""
        made, others = self.case.make(batch, self.dtype)
        inputs = [x.double().requires_grad_(self.differentiable) for x in made]
        return tree_flatten(self.case.call(reference, *inputs, *others))[0], inputs

    def close(self, found, expected, what=""):
        found, expected = (tree_map(lambda x: x.detach().double(), list(x)) for x in (found, expected))
        torch.testing.assert_close(found, expected, **self.tolerance, msg=lambda m: f"{what}: {m}")

    def tangents(self, seed=0):
        g = torch.Generator().manual_seed(100 + seed)
        return tuple(
            torch.randn(x.shape, generator=g, dtype=torch.float64).to(self.dtype) for x in self.inputs
        )

    def jacobian(self):
        """[outputs, inputs] of all numbers: rows of reverse-mode gradients of the reference, one at a time."""
        outputs, inputs = self.exact()
        numbers = torch.cat([y.flatten() for y in outputs])
        rows = []
        for number in numbers:
            grads = torch.autograd.grad(number, inputs, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
        return torch.stack(rows)

    def flat(self, *inputs):
        """All outputs in one row."""
        return torch.cat([y.flatten() for y in self.ours(*inputs)])

    def weights(self):
        count = sum(y.numel() for y in self.exact()[0])
        return torch.randn(count, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(
            self.dtype
        )

    def leaves(self):
        return tuple(x.clone().requires_grad_() for x in self.inputs)


def joined(grads):
    return torch.cat([g.flatten() for g in grads])


def dual_levels(t):
    with forward_ad.dual_level():
        out = t.ours(*(forward_ad.make_dual(x, v) for x, v in zip(t.inputs, t.tangents(), strict=True)))
        found = [forward_ad.unpack_dual(y).tangent for y in out]
    t.close([joined(found)], [t.jacobian() @ joined(t.tangents()).double()])
    with forward_ad.dual_level():  # also where gradients are wanted beside tangents
        out = t.ours(*(forward_ad.make_dual(x, v) for x, v in zip(t.leaves(), t.tangents(), strict=True)))
        again = [forward_ad.unpack_dual(y).tangent for y in out]
    t.close(again, found)


def jvp(t):
    _, found = torch.func.jvp(t.flat, t.inputs, t.tangents())
    t.close([found], [t.jacobian() @ joined(t.tangents()).double()])


def grad(t):
    weights = t.weights()
    loss = lambda *x: t.flat(*x) @ weights  # noqa: E731
    found = torch.func.grad(loss, argnums=tuple(range(len(t.inputs))))(*t.inputs)
    t.close([joined(found)], [weights.double() @ t.jacobian()])


def vjp(t):
    weights = t.weights()
    out, pull = torch.func.vjp(t.flat, *t.inputs)
    t.close([out], [torch.cat([y.flatten() for y in t.exact()[0]])])
    t.close([joined(pull(weights))], [weights.double() @ t.jacobian()])


def jacrev(t):
    _jacobian(t, torch.func.jacrev)


def jacfwd(t):
    _jacobian(t, torch.func.jacfwd)


def _jacobian(t, transform):
    found = transform(t.flat, argnums=tuple(range(len(t.inputs))))(*t.inputs)
    t.close([torch.cat([j.flatten(1) for j in found], 1)], [t.jacobian()])


def hessian(t):
    weights, argnums = t.weights(), tuple(range(len(t.inputs)))
    found = torch.func.hessian(lambda *x: t.flat(*x) @ weights, argnums=argnums)(*t.inputs)
    outputs, inputs = t.exact()
    total = torch.cat([y.flatten() for y in outputs]) @ weights.double()
    first = torch.autograd.grad(total, inputs, create_graph=True, materialize_grads=True)
    expected = []
    for number in torch.cat([g.flatten() for g in first]):
        if not number.requires_grad:  # permutations are linear
            expected.append(torch.zeros_like(joined(inputs)))
            continue
        seconds = torch.autograd.grad(number, inputs, retain_graph=True, materialize_grads=True)
        expected.append(joined(seconds))
    rows = [
        torch.cat([h.reshape(x.numel(), -1) for h in row], 1) for x, row in zip(inputs, found, strict=True)
    ]
    t.close([torch.cat(rows)], [torch.stack(expected)])


def vmap(t):
    many = [torch.stack([x, 2 * x, x - 1]) for x in t.inputs]
    found = torch.func.vmap(lambda *x: t.ours(*x))(*many)
    for i in range(3):
        expected = t.case.call(reference, *(x[i].double() for x in many), *t.others)
        t.close([y[i] for y in found], tree_flatten(expected)[0])


def vmap_of_grad(t):
    weights = t.weights()
    many = [torch.stack([x, x]) for x in t.inputs]
    loss = lambda *x: t.flat(*x) @ weights  # noqa: E731
    found = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(len(many)))))(*many)
    t.close([torch.cat([g.flatten(1) for g in found], 1)[1]], [weights.double() @ t.jacobian()])


def grads_batched(t):
    leaves = t.leaves()
    out, weights = t.flat(*leaves), torch.stack([t.weights(), -2 * t.weights()])
    found = torch.autograd.grad(out, leaves, weights, is_grads_batched=True, retain_graph=True)
    expected = weights.double() @ t.jacobian()
    t.close([torch.cat([g.flatten(1) for g in found], 1)], [expected])
    loss = t.flat(*leaves).mean()  # of a scalar, as people have it
    found = torch.autograd.grad(
        loss, leaves, torch.tensor([1.0, 3.0], dtype=loss.dtype), is_grads_batched=True
    )
    mean = t.jacobian().mean(0)
    t.close([torch.cat([g.flatten(1) for g in found], 1)], [torch.stack([mean, 3 * mean])])


def vmap_over_autograd(t):
    leaves = t.leaves()
    out, weights = t.flat(*leaves), torch.stack([t.weights(), -2 * t.weights()])
    found = torch.func.vmap(lambda w: torch.autograd.grad(out, leaves, w, retain_graph=True))(weights)
    t.close([torch.cat([g.flatten(1) for g in found], 1)], [weights.double() @ t.jacobian()])


def functional_jacobian(t):
    found = torch.autograd.functional.jacobian(t.flat, t.inputs, vectorize=True)
    t.close([torch.cat([j.flatten(1) for j in found], 1)], [t.jacobian()])
    found = torch.autograd.functional.jacobian(t.flat, t.inputs, vectorize=True, strategy="forward-mode")
    t.close([torch.cat([j.flatten(1) for j in found], 1)], [t.jacobian()])


def dual_gradients(t):
    """Tangents that only the backward sees."""
    leaves, weights = t.leaves(), t.weights()
    out = t.flat(*leaves)
    with forward_ad.dual_level():
        grads = torch.autograd.grad(out, leaves, forward_ad.make_dual(weights, 2 * weights))
        parts = [forward_ad.unpack_dual(g) for g in grads]
    expected = weights.double() @ t.jacobian()
    t.close([joined(p.primal for p in parts)], [expected])
    t.close([joined(p.tangent for p in parts)], [2 * expected])


def double_backward(t):
    leaves, weights = t.leaves(), t.weights()
    first = torch.autograd.grad(t.flat(*leaves) @ weights, leaves, create_graph=True)
    outputs, inputs = t.exact()
    total = torch.cat([y.flatten() for y in outputs]) @ weights.double()
    exact = torch.autograd.grad(total, inputs, create_graph=True)
    t.close(first, exact)
    penalty, exact_penalty = (sum(g.square().sum() for g in grads) for grads in (first, exact))
    if not exact_penalty.requires_grad:  # permutations are linear
        assert not penalty.requires_grad
        return
    expected = torch.autograd.grad(exact_penalty, inputs, materialize_grads=True)
    try:
        found = torch.autograd.grad(penalty, leaves, materialize_grads=True)
    except RuntimeError as refusal:
        assert str(refusal) == "pyvae ops differentiate once: use pyvae.reference for gradients of gradients"  # noqa: PT017
    else:
        t.close(found, expected)


def plain_gradients(t):
    """Without any transform, as the others' measure; and through what only saves memory."""
    for run in (
        lambda f, *x: f(*x),
        lambda f, *x: checkpoint(f, *x, use_reentrant=False),
        lambda f, *x: checkpoint(f, *x, use_reentrant=True),
    ):
        leaves = t.leaves()
        (run(t.flat, *leaves) @ t.weights()).backward()
        t.close([joined(x.grad for x in leaves)], [t.weights().double() @ t.jacobian()])


def jit_trace(t):
    _other_batch(t, torch.jit.trace(t.of_all, (*t.inputs, *t.others)))


def _other_batch(t, f):
    """The same on a batch of another size than that which was traced."""
    made, others = t.case.make(BATCH + 2, t.dtype)
    leaves = [x.requires_grad_() for x in made]
    outputs, inputs = t.exact(BATCH + 2)
    found = tree_flatten(f(*leaves, *others))[0]
    t.close(found, outputs)
    if inputs:
        total, exact = (sum((y * y).sum() for y in out if y.requires_grad) for out in (found, outputs))
        t.close(torch.autograd.grad(total, leaves), torch.autograd.grad(exact, inputs))


def make_fx_real(t):
    _make_fx(t, "real")


def make_fx_fake(t):
    _make_fx(t, "fake")


def make_fx_symbolic(t):
    _other_batch(t, _make_fx(t, "symbolic"))


def _make_fx(t, mode):
    args = (*t.inputs, *t.others)
    traced = make_fx(t.of_all, tracing_mode=mode)(*args)
    t.close(traced(*args), t.exact()[0])
    return traced


def fake_tensors(t):
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (*t.inputs, *t.others)]
        found = t.of_all(*fake)
    _same_layout(t, found)


def meta(t):
    _same_layout(t, t.of_all(*(x.to("meta") for x in (*t.inputs, *t.others))))


def _same_layout(t, found):
    expected = t.ours(*t.inputs)
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in expected]


def aot(t):
    leaves = t.leaves()
    compiled = aot_function(t.of_all, fw_compiler=lambda graph, _: graph)
    total = sum((y * y).sum() for y in compiled(*leaves, *t.others))
    outputs, inputs = t.exact()
    expected = torch.autograd.grad(sum((y * y).sum() for y in outputs), inputs)
    t.close(torch.autograd.grad(total, leaves), expected)


class Exported(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, *args):
        return tuple(tree_flatten(self.case.call(pyvae, *args))[0])


def _export(t, strict):
    batch = torch.export.Dim("batch", min=2)
    made, others = t.case.make(BATCH, t.dtype)
    open_at = [{0: batch} for _ in made] + [{0: batch} if len(x) == BATCH else None for x in others]
    program = torch.export.export(
        Exported(t.case), (*made, *others), dynamic_shapes=(tuple(open_at),), strict=strict
    )
    # no more than torch is needed to load it
    assert "pyvae" not in program.graph_module.code
    _other_batch(t, program.module())


def export(t):
    _export(t, strict=False)


def export_strict(t):
    _export(t, strict=True)


def compile_dynamic(t):
    """One graph for all sizes of the batch."""
    torch._dynamo.reset()
    compiled = torch.compile(t.of_all, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (7, 8, 6, 11, 17):  # the first of them no size of anything else
            made, others = t.case.make(batch, t.dtype)
            leaves = [x.requires_grad_() for x in made]
            found, (outputs, inputs) = compiled(*leaves, *others), t.exact(batch)
            t.close(found, outputs)
            if inputs:
                grads = torch.autograd.grad(sum(y.sum() for y in found), leaves)
                t.close(grads, torch.autograd.grad(sum(y.sum() for y in outputs), inputs))


def compiled_transforms(t):
    torch._dynamo.reset()
    weights, argnums = t.weights(), tuple(range(len(t.inputs)))
    loss = lambda *x: t.flat(*x) @ weights  # noqa: E731
    gradient = torch.compile(
        lambda *x: torch.func.grad(loss, argnums=argnums)(*x), backend="aot_eager", fullgraph=True
    )
    t.close([joined(gradient(*t.inputs))], [weights.double() @ t.jacobian()])
    push = lambda x, v: torch.func.jvp(t.flat, x, v)[1]  # noqa: E731
    found = torch.compile(push, backend="aot_eager", fullgraph=True)(t.inputs, t.tangents())
    t.close([found], [t.jacobian() @ joined(t.tangents()).double()])


def inference_mode(t):
    with torch.inference_mode():
        found = t.ours(*t.inputs)
    t.close(found, t.exact()[0])


class Tagged(Tensor):
    """A subclass that torch's functions keep."""


def subclass(t):
    found = t.ours(*(x.as_subclass(Tagged) for x in t.inputs))
    assert {type(y) for y in found} == {Tagged}
    t.close([y.as_subclass(Tensor) for y in found], t.exact()[0])
    leaves = t.leaves()
    total = sum((y * y).sum() for y in t.ours(*(x.as_subclass(Tagged) for x in leaves)))
    outputs, inputs = t.exact()
    t.close(
        torch.autograd.grad(total, leaves),
        torch.autograd.grad(sum((y * y).sum() for y in outputs), inputs),
    )


class Watching(TorchDispatchMode):
    """Sees what torch computes, as counters of operations and of memory do."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.namespace)
        return func(*args, **(kwargs or {}))


def dispatch_mode(t):
    with Watching() as mode:
        found = t.ours(*t.inputs)
    t.close(found, t.exact()[0])
    if (
        t.dtype == torch.float32
        and backend.choose("permute_dims", torch.device("cpu"), t.dtype).backend == "native"
    ):
        assert "pyvae_native" in mode.seen


def function_mode(t):
    with torch.device("cpu"):
        found = t.ours(*t.inputs)
    t.close(found, t.exact()[0])


def compile_with_breaks(t):
    """What reads values breaks the graph, and runs eagerly in between."""
    torch._dynamo.reset()
    found = torch.compile(lambda *x: t.ours(*(2 * each for each in x)), backend="aot_eager")(*t.inputs)
    expected = t.case.call(reference, *(2 * x.double() for x in t.inputs), *t.others)
    t.close(found, tree_flatten(expected)[0])


VALUES = {
    "torch.inference_mode": inference_mode,
    "torch.utils._python_dispatch.TorchDispatchMode": dispatch_mode,
    "torch.device as a context": function_mode,
}
TRACES = {
    "torch.jit.trace, TensorBoard's add_graph": jit_trace,
    "make_fx on real tensors": make_fx_real,
    "make_fx on fake tensors": make_fx_fake,
    "make_fx with open sizes": make_fx_symbolic,
    "FakeTensorMode": fake_tensors,
    "meta tensors": meta,
    "torch.export with an open batch": export,
    "torch.export, strict": export_strict,
}
DERIVATIVES = {
    "dual levels of torch.autograd.forward_ad": dual_levels,
    "torch.func.jvp": jvp,
    "torch.func.grad": grad,
    "torch.func.vjp": vjp,
    "torch.func.jacrev": jacrev,
    "torch.func.jacfwd": jacfwd,
    "torch.func.hessian": hessian,
    "torch.func.vmap": vmap,
    "vmap of grad": vmap_of_grad,
    "torch.autograd.grad with is_grads_batched": grads_batched,
    "vmap over torch.autograd.grad": vmap_over_autograd,
    "torch.autograd.functional.jacobian": functional_jacobian,
    "gradients with tangents": dual_gradients,
    "double backward": double_backward,
    "torch.utils.checkpoint": plain_gradients,
    "aot_function": aot,
    "torch.func inside torch.compile": compiled_transforms,
    "subclasses of Tensor": subclass,
}
COMPILED = {"torch.compile, dynamic and fullgraph": compile_dynamic}
BREAKS = {"torch.compile with breaks": compile_with_breaks}
ALL = VALUES | TRACES | DERIVATIVES | COMPILED | BREAKS

QUICK = {
    "torch.func inside torch.compile": "bernoulli_nll, bits",
    "torch.export, strict": "aggregate_log_density, stratified",
    "aot_function": "reparameterize_kl",
    "torch.compile with breaks": "code_histogram",
}
"""Of transforms that take seconds, the op whose test is not slow."""
PAIRS = [
    *((op, name) for op in OPS for name in VALUES),
    *((op, name) for op in OPS if op not in METRICS for name in TRACES | COMPILED),
    *((op, name) for op in DIFFERENTIABLE for name in DERIVATIVES),
    *((op, "torch.compile with breaks") for op in METRICS),
]
RIGHT = [
    pytest.param(
        op, name, dtype, marks=[pytest.mark.slow] * (QUICK.get(name, op) != op), id=f"{op}-{name}-{dtype}"
    )
    for op, name in PAIRS
    for dtype in ("float32", "float64")
    # the reference takes float64 anyway: enough to see of it that derivatives have its digits
    if dtype == "float32" or (name in DERIVATIVES and name not in QUICK)
]
REFUSED = [*TRACES, *(n for n in DERIVATIVES if n.startswith(("torch.func.", "dual", "vmap of")))]
"""By the metrics. What is left has no gradient to ask for, which torch refuses."""


@pytest.fixture(autouse=True)
def said_elsewhere():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pyvae runs its slower reference")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


@pytest.mark.parametrize(("op", "name", "dtype"), RIGHT)
def test_right(op, name, dtype, monkeypatch):
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    ALL[name](Trial(op, getattr(torch, dtype)))


KERNELS = [
    "double backward",
    "gradients with tangents",
    "torch.autograd.grad with is_grads_batched",
    "vmap over torch.autograd.grad",
    "torch.utils.checkpoint",
]
"""Where the forward was the kernels', and the backward comes from somewhere else."""


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("name", KERNELS)
def test_behind_a_forward_of_triton(op, name, triton_backend):
    ALL[name](Trial(op, torch.float32))


def test_a_tensor_of_tensors_has_no_memory_for_kernels(triton_backend):
    """As those of torch.distributed: a class whose numbers lie elsewhere."""
    one, two = torch.randn(4, 3), torch.randn(4, 3)
    z, kl = pyvae.reparameterize_kl(TwoTensor(one, two), TwoTensor(two, one), key=KEY)
    for found, expected in (
        ((z.a, kl.a), reference.reparameterize_kl(one, two, key=KEY)),
        ((z.b, kl.b), reference.reparameterize_kl(two, one, key=KEY)),
    ):
        torch.testing.assert_close(found, expected)


def test_networks_behind_a_forward_of_triton(triton_backend):
    """Bias and activation are kernels of their own there."""
    torch.manual_seed(0)
    net = Layers(nn.Conv2d(1, 2, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.Tanh())
    x, weights = torch.randn(2, 1, 4, 4), torch.randn(2, 2, 3)
    parameters = list(net.parameters())
    out = net(x)
    assert "_Product" in type(out.grad_fn).__name__
    plain = nn.Sequential(*net)(x)
    expected = [torch.autograd.grad(plain, parameters, w, retain_graph=True) for w in weights]
    found = torch.autograd.grad(out, parameters, weights, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(list(found), [torch.stack(g) for g in zip(*expected, strict=True)])
    with forward_ad.dual_level():
        found = torch.autograd.grad(out, parameters, forward_ad.make_dual(weights[0], weights[1]))
        tangents = [forward_ad.unpack_dual(g).tangent for g in found]
    torch.testing.assert_close(tangents, list(expected[1]))
    # a trace has the whole network in it, not memory that a kernel once filled
    torch.testing.assert_close(make_fx(net)(x)(3 * x), nn.Sequential(*net)(3 * x))


def test_behind_a_forward_of_cuda():
    """The permutation's own function, which a CPU does not take."""
    from pyvae.ops.permute_dims import _PermuteDims

    z = torch.randn(5, 3, requires_grad=True)
    out = _PermuteDims.apply(z, z, KEY, 1)
    weights = torch.randn(2, 10, 3)
    expected = [torch.autograd.grad(out, z, w, retain_graph=True)[0] for w in weights]
    (found,) = torch.autograd.grad(out, z, weights, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(found, torch.stack(expected))
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(out, z, forward_ad.make_dual(weights[0], weights[1]))
        torch.testing.assert_close(list(forward_ad.unpack_dual(found)), expected)


@pytest.mark.parametrize("op", METRICS)
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_refused(op, name, backend, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", backend)
    with pytest.raises(RuntimeError) as refusal:
        ALL[name](Trial(op, torch.float32))
    said, expected = str(refusal.value), f"{op}: it reads values and has no derivative: call it outside of "
    if name == "torch.export, strict":  # torch's compiler says more beside it
        assert expected in said
    else:
        assert said.startswith(expected)
        assert len(said.splitlines()) == 1


def test_members_of_vmap_have_keys_of_their_own():
    zeros, keys = torch.zeros(3, 4, 2), torch.stack([make_key(7, i) for i in range(3)])
    found = torch.func.vmap(lambda x, key: pyvae.reparameterize_kl(x, x, key=key)[0])(zeros, keys)
    torch.testing.assert_close(found, reference.reparameterize_kl(zeros, zeros, key=keys)[0])
    same = torch.func.vmap(lambda x: pyvae.reparameterize_kl(x, x)[0], randomness="same")(zeros)
    assert torch.equal(same[0], same[1])
    other = torch.func.vmap(lambda x: pyvae.reparameterize_kl(x, x)[0], randomness="different")(zeros)
    assert not (other[0] == other[1]).any()
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: pyvae.reparameterize_kl(x, x)[0])(zeros)


def test_a_target_may_have_a_tangent():
    """Its gradient is refused, its tangent is right: at the ends of [0, 1] too."""
    logits, x = torch.randn(4, 3), torch.tensor([[0.0, 1.0, 0.3]]).expand(4, 3).contiguous()
    _, found = torch.func.jvp(lambda x: pyvae.bernoulli_nll(logits, x), (x,), (torch.ones(4, 3),))
    torch.testing.assert_close(found, -logits.sum() / 4)


def test_value_checks_wait_for_values(monkeypatch):
    monkeypatch.setenv("PYVAE_CHECK", "1")
    for name in ("torch.func.vmap", "FakeTensorMode", "torch.export with an open batch", "meta tensors"):
        for op in ("reparameterize_kl", "bernoulli_nll", "importance_log_weight"):
            ALL[name](Trial(op, torch.float32))
    for name in ("FakeTensorMode", "torch.export with an open batch", "meta tensors"):
        ALL[name](Trial("gather_bits", torch.float32))
    with pytest.raises(ValueError, match="NaN"):
        pyvae.reparameterize_kl(torch.full((2, 2), torch.nan), torch.zeros(2, 2))


def test_the_reference_is_said_once(monkeypatch):
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    warnings.simplefilter("always")
    backend._say.cache_clear()
    x = torch.zeros(2, 3)
    gradient = torch.func.grad(lambda x: pyvae.bernoulli_nll(x, torch.ones(2, 3)))
    message = "slower reference: plain torch alone goes through torch.func"
    with pytest.warns(UserWarning, match=message) as said:
        assert torch.equal(gradient(x), gradient(x))
    assert len(said) == 1
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    backend._say.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient(x)


ADD_GRAPH = """
import sys, torch
from torch.utils.tensorboard import SummaryWriter
from pyvae import bernoulli_nll, reparameterize_kl

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(16, 8), torch.nn.Linear(4, 16)

    def forward(self, x):
        z, kl = reparameterize_kl(*self.encoder(x).chunk(2, 1))
        return bernoulli_nll(self.decoder(z), x) + kl.sum(), z

writer = SummaryWriter(sys.argv[1])
writer.add_graph(Net(), torch.rand(4, 16))
writer.close()
"""


def test_tensorboard_draws_the_graph(tmp_path):
    """Another process: pytest has warnings of its own."""
    pytest.importorskip("tensorboard")
    done = subprocess.run([sys.executable, "-c", ADD_GRAPH, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # torch says that the two runs of its check draw other noise; nothing is said of sizes that became constants
    assert "TracerWarning: Converting" not in done.stderr
    (events,) = tmp_path.iterdir()
    assert b"Linear[encoder]" in events.read_bytes()


def test_the_docs_have_every_transform():
    rows = [line.split("|")[1].strip() for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    assert sorted(rows) == sorted(["transform", *ALL])
