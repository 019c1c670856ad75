import pytest
import torch
from torch import backends

from pyvae.engine.arithmetic import settle_arithmetic


@pytest.fixture(autouse=True)
def _put_back():
    yield
    settle_arithmetic("fp32")


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_old_and_new_switches_agree(precision, before):
    torch.set_float32_matmul_precision(before)
    tf32 = precision == "tf32"
    settle_arithmetic(precision)
    for _ in range(2):
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert backends.cuda.matmul.allow_tf32 is tf32
        assert backends.cudnn.allow_tf32 is tf32
        # asks for the old ones, and puts them back
        with backends.cudnn.flags(deterministic=True):
            pass
        assert backends.cudnn.deterministic
        assert not backends.cudnn.benchmark


@pytest.mark.parametrize("everywhere", ["tf32", "ieee"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_every_product_has_the_precision(precision, everywhere, monkeypatch):
    monkeypatch.setattr(backends, "fp32_precision", everywhere)
    settle_arithmetic(precision)
    for products in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
        assert products.fp32_precision == ("tf32" if precision == "tf32" else "ieee")
    assert backends.mkldnn.matmul.fp32_precision == "ieee"
