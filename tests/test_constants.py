import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyvae.base import constants
from pyvae.base.constants import constant


def made():
    """A place of its own for what is made here."""
    constants._made.clear()
    return constants._made


def test_a_constant_is_made_once_for_each_dtype():
    known = made()
    for like in (torch.rand(3), torch.rand(()), torch.rand(2, 2), torch.rand(3, requires_grad=True)):
        found = constant(2.5, like)
        assert torch.equal(found, torch.full_like(like, 2.5))
        assert not found.requires_grad
        assert found.data_ptr() == known[2.5, torch.float32, like.device].data_ptr()
    assert constant(2.5, torch.rand(3).double()).dtype == torch.float64
    assert len(known) == 2


def test_what_is_made_elsewhere_is_not_kept():
    known, x = made(), torch.rand(3)
    with torch.inference_mode():
        assert torch.equal(constant(1.0, x), torch.ones(3))
    assert torch.equal(torch.func.grad(lambda x: (x * constant(2.0, x)).sum())(x), torch.full((3,), 2.0))
    assert torch.equal(torch.vmap(lambda x: x * 0 + constant(3.0, x))(x), torch.full((3,), 3.0))
    with FakeTensorMode() as mode:
        assert constant(4.0, mode.from_tensor(x)).shape == (3,)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x * 0 + constant(5.0, x), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), torch.full((3,), 5.0))
    assert known == {}
