"""Adam and the gradient norm: the kernels against plain torch, that against torch.optim.Adam, and their checkpoints."""

import copy
import math

import pytest
import torch
from torch import nn

from pyvae.engine import adam as module
from pyvae.engine import checkpoint
from pyvae.engine.adam import Adam, adam, moved
from pyvae.engine.checkpoint import Checkpoint
from pyvae.engine.state import Trained

CHANNELS_LAST = (6, 4, 3, 5)
SHAPES = [(), (1,), (7, 9), (1024,), (1025,), CHANNELS_LAST, (40, 30), (3, 1, 2, 2)]
"""Of which the seventh is transposed, and the last channels_last with but one channel."""


@pytest.fixture(autouse=True)
def triton(triton_backend, monkeypatch):
    """And blocks of the smallest size that is launched."""
    monkeypatch.setattr(module, "_block", lambda weights: 1024)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(device, dtype=torch.float32, shapes=tuple(SHAPES)) -> list[nn.Parameter]:
    g = generator(0)
    drawn = [torch.randn(shape, generator=g).to(device, dtype) for shape in shapes]
    last = {"memory_format": torch.channels_last}
    drawn = [torch.empty(x.shape, **last).to(x).copy_(x) if x.dim() == 4 else x for x in drawn]
    return [nn.Parameter(x.t().contiguous().t() if x.shape == (40, 30) else x) for x in drawn]


def give_gradients(of: list[nn.Parameter], step: int, *, but: tuple[int, ...] = ()) -> None:
    """The same whatever the device, the dtype and the optimiser; of very different sizes."""
    g = generator(100 + step)
    for n, p in enumerate(of):
        gradient = torch.randn(p.shape, generator=g) * 10.0 ** (n % 5 - 3)
        p.grad = None if n in but else torch.empty_like(p).copy_(gradient)


def assert_near(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    """Up to a few roundings of the largest element: a mean of gradients may all but cancel in another."""
    assert mine.shape == theirs.shape
    a, b = (x.detach().cpu().double() for x in (mine, theirs))
    assert float((a - b).abs().max()) <= 2e-6 * float(b.abs().max())


def assert_same_state(mine: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    of, other = (o.param_groups[0]["params"] for o in (mine, theirs))
    for p, q in zip(of, other, strict=True):
        assert_near(p, q)
        assert list(mine.state[p]) == list(theirs.state[q])
        for name, tensor in mine.state[p].items():
            assert_near(tensor, theirs.state[q][name])
            assert tensor.dtype == torch.float32
            assert tensor.dim() == 0 or module._lie_alike(tensor, p)


def test_plain_torch_is_torchs_adam():
    torchs = parameters("cpu", torch.float64)
    optimizer = torch.optim.Adam(torchs, lr=1e-2, betas=(0.7, 0.99), eps=1e-3)
    plain = [(p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)) for p in torchs]
    for step in range(1, 61):
        give_gradients(torchs, step)
        rate = {"lr": 1e-2, "betas": (0.7, 0.99), "eps": 1e-3}
        plain = [moved(w, p.grad, m, v, step, **rate) for (w, m, v), p in zip(plain, torchs, strict=True)]
        optimizer.step()
    for (weight, exp_avg, exp_avg_sq), p in zip(plain, torchs, strict=True):
        state = optimizer.state[p]
        for a, b in ((weight, p), (exp_avg, state["exp_avg"]), (exp_avg_sq, state["exp_avg_sq"])):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("betas", "steps"), [((0.9, 0.999), 50), ((0.5, 0.9), 20)])
def test_many_steps(betas, steps, device):
    mine, fused, exact = (parameters(device, d) for d in (torch.float32, torch.float32, torch.float64))
    ours = Adam(mine, 1e-2, betas)
    fused_adam = torch.optim.Adam(fused, lr=1e-2, betas=betas, fused=True)
    exact_adam = torch.optim.Adam(exact, lr=1e-2, betas=betas)
    for step in range(steps):
        for of, optimizer in ((mine, ours), (fused, fused_adam), (exact, exact_adam)):
            give_gradients(of, step)
            optimizer.step()
    for a, b, c in zip(mine, fused, exact, strict=True):
        scale = c.abs().clamp(min=0.05)
        error, torchs = (float(((x.detach().double() - c) / scale).abs().max()) for x in (a, b))
        assert error <= max(2 * torchs, 1e-6)
    assert_same_state(ours, fused_adam)


@pytest.mark.parametrize("step", [1, 2, 10, 1000, 1_500_000, 16_000_000])
def test_corrections_are_those_of_double_precision(step, device):
    weight = nn.Parameter(torch.zeros(5, device=device))
    optimizer = Adam([weight], 1.0, eps=0.0)
    weight.grad = torch.tensor([1e-3, 1.0, -2.0, 1e4, 1e-6], device=device)
    moments = {"step": torch.tensor(step - 1.0), "exp_avg": torch.zeros(5), "exp_avg_sq": torch.zeros(5)}
    optimizer.norm()  # counts from 0, but not from what is loaded
    optimizer.load_state_dict({"state": {0: moments}, "param_groups": optimizer.state_dict()["param_groups"]})
    optimizer.step()
    zero = torch.zeros(5, dtype=torch.float64)
    expected, *_ = moved(zero, weight.grad.cpu().double(), zero, zero, step, lr=1.0, eps=0.0)
    torch.testing.assert_close(weight.detach().cpu().double(), expected, rtol=6e-7, atol=0)
    assert float(optimizer.state[weight]["step"]) == step


def test_a_tiny_variance_does_not_matter_beside_epsilon(device):
    weight = nn.Parameter(torch.zeros(3, device=device))
    optimizer = Adam([weight], 1.0)
    weight.grad = torch.tensor([1e-25, 1e-21, -1e-12], device=device)
    optimizer.step()
    zero = torch.zeros(3, dtype=torch.float64)
    expected, *_ = moved(zero, weight.grad.cpu().double(), zero, zero, 1, lr=1.0)
    torch.testing.assert_close(weight.detach().cpu().double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 1500), (1024, 2048), (0, 5, 0)], ids=str)
def test_the_norm(sizes, device):
    of = parameters(device, shapes=[(n,) for n in sizes])
    give_gradients(of, 0)
    optimizer = Adam(of, 1e-3)
    exact = torch.linalg.vector_norm(torch.cat([p.grad.double() for p in of]))
    for _ in range(3):
        norm = optimizer.norm()
        assert norm.shape == ()
        assert float(norm) == pytest.approx(float(exact), rel=3e-7)
        assert int(optimizer._arrived) == 0
    again = optimizer.norm()
    assert torch.equal(again, norm)
    assert again.data_ptr() != norm.data_ptr()  # a step may hold several


def test_a_norm_of_nothing(device):
    of = parameters(device)
    optimizer = Adam(of, 1e-3)
    before = [p.detach().clone() for p in of]
    assert float(optimizer.norm()) == 0.0
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(of, before, strict=True))
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [(3, 1023), (4, 1024), (1, 0)])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(poison, where, device):
    of = parameters(device)
    give_gradients(of, 0)
    number, element = where
    of[number].grad[element] = poison
    assert not math.isfinite(float(Adam(of, 1e-3).norm()))


def test_a_step_that_found_infinity_changes_nothing(device):
    mine, theirs = parameters(device), parameters(device)
    ours, torchs = Adam(mine, 1e-2), torch.optim.Adam(theirs, lr=1e-2, fused=True)
    good = 0
    for step in range(12):
        bad = step in (0, 3, 4, 9)
        good += not bad
        for of, optimizer in ((mine, ours), (theirs, torchs)):
            give_gradients(of, step)
            if bad:
                of[3].grad[5] = math.nan
            optimizer.found_inf = torch.tensor(float(bad), device=device)
            before = [p.detach().clone() for p in of]
            optimizer.step()
            still = [torch.equal(p, q) for p, q in zip(of, before, strict=True)]
            assert all(still) if bad else not any(still)
        assert {float(state["step"]) for state in ours.state.values()} == {good}
    assert_same_state(ours, torchs)


def test_parameters_without_a_gradient_stand_still(device):
    mine, theirs = parameters(device), parameters(device)
    ours, torchs = Adam(mine, 1e-2), torch.optim.Adam(theirs, lr=1e-2)
    for step, but in enumerate([(0, 3), (3,), (0, 1, 2, 3, 4, 5, 7), (2, 3, 7)]):
        for of, optimizer in ((mine, ours), (theirs, torchs)):
            give_gradients(of, step, but=but)
            optimizer.step()
        present = torch.cat([p.grad.double().flatten() for p in theirs if p.grad is not None])
        assert float(ours.norm()) == pytest.approx(float(torch.linalg.vector_norm(present)), rel=3e-7)
    assert mine[3] not in ours.state
    assert len({float(state["step"]) for state in ours.state.values()}) > 2
    ours.state.pop(mine[3], None)
    assert_same_state(ours, torchs)


@pytest.mark.parametrize(("count", "per_launch"), [(64, 64), (65, 64), (8, 3), (9, 3)])
def test_any_number_of_parameters(count, per_launch, device, monkeypatch):
    assert module._PER_LAUNCH == 64
    monkeypatch.setattr(module, "_PER_LAUNCH", per_launch)
    shapes = [(1 + n % 5,) for n in range(count)]
    mine, theirs = parameters(device, shapes=shapes), parameters(device, shapes=shapes)
    ours, torchs = Adam(mine, 1e-2), torch.optim.Adam(theirs, lr=1e-2)
    for step, but in enumerate([(0, 3, 5, count - 1), ()]):  # whose steps are fewer
        for of, optimizer in ((mine, ours), (theirs, torchs)):
            give_gradients(of, step, but=but)
            optimizer.step()
    exact = torch.linalg.vector_norm(torch.cat([p.grad.double() for p in mine]))
    assert float(ours.norm()) == pytest.approx(float(exact), rel=3e-7)
    assert int(ours._arrived) == 0
    assert_same_state(ours, torchs)


def test_gradients_laid_out_otherwise(device):
    mine, theirs = parameters(device), parameters(device)
    ours, torchs = Adam(mine, 1e-2), torch.optim.Adam(theirs, lr=1e-2, foreach=False)
    for of, optimizer in ((mine, ours), (theirs, torchs)):
        give_gradients(of, 0)
        for n in (5, 6):
            of[n].grad = of[n].grad.contiguous()
            assert of[n].grad.stride() != of[n].stride()
        of[4].grad = torch.stack([of[4].grad] * 2, -1)[:, 0]
        of[2].grad = of[2].grad[:1, :1].expand(of[2].shape)
        optimizer.step()
    assert_same_state(ours, torchs)


def test_the_stride_of_a_single_element_says_nothing(device):
    (weight,) = parameters(device, shapes=[(3, 1, 2, 2)])
    gradient = torch.ones(3, 1, 2, 2, device=device)
    assert gradient.stride() != weight.stride()
    weight.grad = gradient
    (address,) = Adam([weight], 1e-2)._gradients()
    assert address.data_ptr() == gradient.data_ptr()


@pytest.mark.parametrize("size", [1, 1022, 1023, 1025, 2047])
def test_what_lies_behind_a_tensor_is_neither_read_nor_written(size, device):
    weights, gradients = (torch.full((size + 5,), math.nan, device=device) for _ in range(2))
    weight = nn.Parameter(weights[:size])
    with torch.no_grad():
        weight.fill_(1.0)
    weight.grad = gradients[:size].fill_(2.0)
    optimizer = Adam([weight], 0.5)
    assert float(optimizer.norm()) == pytest.approx(2 * size**0.5)
    optimizer.step()
    torch.testing.assert_close(weight.detach().cpu(), torch.full((size,), 0.5))
    assert weights[size:].isnan().all()


def test_two_runs_are_equal_bit_for_bit(device):
    runs = []
    for _ in range(2):
        of = parameters(device)
        optimizer, norms = Adam(of, 1e-2), []
        for step in range(6):
            give_gradients(of, step)
            norms.append(optimizer.norm())
            optimizer.step()
        runs.append([*norms, *of, *(t for state in optimizer.state.values() for t in state.values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_rate_is_read_from_the_device(device):
    mine, theirs = parameters(device), parameters(device)
    ours, torchs = (
        Adam(mine, 1e-2),
        torch.optim.Adam(theirs, lr=torch.tensor(1e-2, device=device), fused=True),
    )
    address = ours.param_groups[0]["lr"].data_ptr()
    for step in range(4):
        for of, optimizer in ((mine, ours), (theirs, torchs)):
            give_gradients(of, step)
            Trained("net", nn.ParameterList(of), optimizer).set_rate(torch.tensor(0.1**step))
            optimizer.step()
    assert ours.param_groups[0]["lr"].data_ptr() == address
    assert_same_state(ours, torchs)


def test_a_closure_and_a_stale_graph(device):
    weight = nn.Parameter(torch.ones(3, device=device))
    optimizer = Adam([weight], 0.5)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) == 3.0
    torch.testing.assert_close(weight.detach().cpu(), torch.full((3,), 0.5))
    loss = weight.square().sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_is_refused(device):
    x = torch.zeros(4, 6, device=device)
    with pytest.raises(TypeError, match=r"parameter 1 is of torch.float16, but must be of torch.float32"):
        Adam([nn.Parameter(x), nn.Parameter(x.half())], 1e-3)
    with pytest.raises(ValueError, match=r"parameter 1 is on meta, but the first on"):
        Adam([nn.Parameter(x), nn.Parameter(x.to("meta"))], 1e-3)
    for gaps in (x[:, ::2], x[:, :1].expand(4, 6)):
        with pytest.raises(ValueError, match=r"parameter 0 has gaps or overlaps .* make it contiguous"):
            Adam([nn.Parameter(gaps)], 1e-3)
    with pytest.raises(ValueError, match="there are no parameters"):
        Adam([], 1e-3)
    weight = nn.Parameter(x.clone())
    optimizer = Adam([weight], 1e-3)
    weight.grad = torch.zeros_like(x).to_sparse()
    with pytest.raises(RuntimeError, match="the gradient of parameter 0 is sparse"):
        optimizer.step()
    weight.grad = None
    weight.data = x.t().contiguous().t()
    with pytest.raises(
        RuntimeError, match=r"parameter 0 has shape \(4, 6\) and strides \(1, 4\), other than when"
    ):
        optimizer.step()


class Net(nn.Module):
    def __init__(self, seed: int, device) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, 6, 3)
        self.linear = nn.Linear(7, 5)
        self.idle = nn.Linear(2, 2)
        self.to(device, memory_format=torch.channels_last)


def trained(net: Net, kind: str, device, monkeypatch) -> Trained:
    with monkeypatch.context() as patch:
        patch.setenv("PYVAE_BACKEND", "triton" if kind == "ours" else "reference")
        optimizer = adam(net.parameters(), 1e-2, device, betas=(0.8, 0.95))
    assert type(optimizer) is (Adam if kind == "ours" else torch.optim.Adam)
    return Trained("net", net, optimizer)


def train(of: Trained, steps: range) -> None:
    for step in steps:
        give_gradients(list(of.module.parameters()), step, but=(4, 5))
        of.step(torch.zeros((), device=next(of.module.parameters()).device))


@pytest.mark.parametrize(("before", "after"), [("torch", "ours"), ("ours", "torch"), ("ours", "ours")])
def test_checkpoints_are_torchs(before, after, tmp_path, device, monkeypatch):
    first = trained(Net(0, device), before, device, monkeypatch)
    assert first.tensors().keys() == {f"net.{name}" for name in first.module.state_dict()}
    train(first, range(4))
    tensors = first.tensors()
    other = trained(Net(0, device), "torch", device, monkeypatch)
    train(other, range(4))
    assert list(tensors) == list(other.tensors())
    for name, tensor in other.tensors().items():
        assert (tensors[name].shape, tensors[name].dtype) == (tensor.shape, tensor.dtype)
        assert module._lie_alike(tensors[name], tensor)
        assert tensors[name].device.type == tensor.device.type or name.endswith("step")
    checkpoint.save(tmp_path, Checkpoint(4, tensors, {"data": "none", "image_shape": (1, 1, 1)}))
    second = trained(Net(1, device), after, device, monkeypatch)
    train(second, range(100, 102))
    addresses = {name: t.data_ptr() for name, t in second.tensors().items()}
    second.restore(checkpoint.load_newest(tmp_path).tensors)
    for name, tensor in second.tensors().items():
        assert torch.equal(tensor.cpu(), tensors[name].cpu())
        assert after == "torch" or tensor.data_ptr() == addresses[name]
    train(first, range(4, 8))
    train(second, range(4, 8))
    for name, tensor in second.tensors().items():
        assert_near(tensor, first.tensors()[name])
        assert before != after or torch.equal(tensor, first.tensors()[name])


def test_a_checkpoint_before_the_first_step(device, monkeypatch):
    fresh = {n: t.clone() for n, t in trained(Net(0, device), "torch", device, monkeypatch).tensors().items()}
    mine, other = (trained(Net(seed, device), "ours", device, monkeypatch) for seed in (0, 1))
    train(other, range(3))
    other.restore(fresh)
    assert other.tensors().keys() == fresh.keys()
    train(mine, range(3))
    train(other, range(3))
    assert all(torch.equal(t, mine.tensors()[name]) for name, t in other.tensors().items())


@pytest.mark.parametrize(("before", "after"), [("torch", "ours"), ("ours", "torch")])
def test_a_state_dict_is_torchs(before, after, device, monkeypatch):
    first = trained(Net(0, device), before, device, monkeypatch)
    first.optimizer.param_groups[0]["eps"] = 1e-3
    train(first, range(3))
    second = trained(copy.deepcopy(first.module), after, device, monkeypatch)
    (group,) = second.optimizer.param_groups
    group["betas"] = (0.1, 0.2)
    group["lr"] = group["lr"].fill_(5.0) if after == "ours" else 5.0
    # a copy, since torch keeps the tensors that it is given
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    train(first, range(3, 6))
    train(second, range(3, 6))
    assert_same_state(first.optimizer, second.optimizer)


def test_a_state_dict_of_another_adam_is_refused(device):
    mine = Adam(parameters(device), 1e-3)
    decayed = torch.optim.Adam(parameters(device), weight_decay=0.1).state_dict()
    with pytest.raises(ValueError, match="an Adam with weight_decay, which this one does not have"):
        mine.load_state_dict(decayed)
    with pytest.raises(ValueError, match="not of one group of as many parameters"):
        mine.load_state_dict(torch.optim.Adam(parameters(device)[1:]).state_dict())


def test_a_module_is_copied_and_loaded_as_any_other(device, monkeypatch):
    mine = trained(Net(0, device), "ours", device, monkeypatch)
    train(mine, range(2))
    copied = copy.deepcopy(mine.module)
    weights = {name: t.clone() for name, t in copied.state_dict().items()}
    assert copied.conv.weight.stride() == mine.module.conv.weight.stride()
    assert copied.conv.weight.untyped_storage().nbytes() == copied.conv.weight.nbytes
    train(mine, range(2, 4))
    assert all(torch.equal(t, weights[name]) for name, t in copied.state_dict().items())
    mine.module.load_state_dict(weights)
    assert all(torch.equal(t, weights[name]) for name, t in mine.module.state_dict().items())
    train(mine, range(4, 5))
    assert not torch.equal(mine.module.conv.weight, weights["conv.weight"])
