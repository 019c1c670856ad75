"""In other people's training loops: torch.compile, DDP, autocast, accumulated gradients, types, imports."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pyvae
from pyvae.metrics import StreamedMetrics
from pyvae.modules import BernoulliNLL, KLDecomposition, ReparameterizeKL, TotalCorrelationDiscriminatorLoss
from pyvae.random import make_key

PIXELS, LATENTS = 64, 4


class UserVAE(nn.Module):
    """As people write it: a convolutional code of 1 x 1, mean and log-variance in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(1, 2 * LATENTS, 8)
        self.decoder = nn.ConvTranspose2d(LATENTS, 1, 8)
        self.sample = ReparameterizeKL()
        self.nll = BernoulliNLL()

    def forward(self, x, key=None):
        z, kl = self.sample(self.encoder(x), key=key)
        return self.nll(self.decoder(z), x), kl.sum(), z


def images(count, seed=0):
    return (torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_a_compiled_step_has_no_break_and_is_compiled_once(backend):
    torch._dynamo.reset()
    vae, plain = UserVAE(), UserVAE()
    tc = TotalCorrelationDiscriminatorLoss(nn.Sequential(nn.Linear(LATENTS, 8), nn.ReLU(), nn.Linear(8, 2)))
    parts = KLDecomposition(1000)

    def losses(model, x, second, key):
        recon, kl, z = model(x, key)
        flat = z.flatten(1)
        mi, total, dwkl = parts(flat, flat * 0.9, flat * 0.1 - 1)
        return recon + 4 * kl + tc(z) + mi + total + dwkl, tc.discriminator_loss(z, second, key=key)

    compiled = torch.compile(losses, fullgraph=True, dynamic=False, backend=backend)
    optimizers = [torch.optim.Adam([*m.parameters()], 1e-2) for m in (vae, plain)]
    for step in range(4):
        key, x = make_key(1, step), images(6, step)
        second = torch.randn(6, LATENTS, generator=torch.Generator().manual_seed(step))
        found = []
        for run, model, optimizer in ((compiled, vae, optimizers[0]), (losses, plain, optimizers[1])):
            optimizer.zero_grad()
            loss, discriminator_loss = run(model, x, second, key)
            loss.backward()
            optimizer.step()
            found.append((loss.detach(), discriminator_loss.detach()))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_autocast_gives_float32_losses():
    vae, x = UserVAE(), images(6)
    exact_recon, exact_kl, _ = vae(x, make_key(0, 0))
    (exact_recon + exact_kl).backward()
    exact = gradients(vae)
    vae.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        recon, kl, z = vae(x, make_key(0, 0))
        assert z.dtype == torch.bfloat16
    assert recon.dtype == kl.dtype == torch.float32
    (recon + kl).backward()
    torch.testing.assert_close(recon, exact_recon, rtol=2e-2, atol=0.0)
    for name, grad in gradients(vae).items():
        assert grad.dtype == torch.float32
        assert (grad - exact[name]).norm() < 0.1 * exact[name].norm(), name


def test_autocast_may_leave_inputs_in_two_dtypes():
    layer = nn.Linear(8, 2 * LATENTS)
    tc = TotalCorrelationDiscriminatorLoss(latents=LATENTS)
    with torch.autocast("cpu", torch.bfloat16):
        mu, raw = layer(torch.randn(6, 8)).chunk(2, -1)
        logvar = nn.functional.softplus(raw.float()).log()  # float32, as softplus and log are on a GPU
        assert (mu.dtype, logvar.dtype) == (torch.bfloat16, torch.float32)
        z, kl = ReparameterizeKL()(mu, logvar, key=make_key(0, 0))
        wide, kl_wide = ReparameterizeKL()(mu.float(), logvar, key=make_key(0, 0))
        assert torch.equal(z, wide)
        assert torch.equal(kl, kl_wide)
        parts = KLDecomposition(100)(z.bfloat16(), mu, logvar)
        losses = [*parts, tc(z), tc.discriminator_loss(mu, z), kl.sum()]
    assert {loss.dtype for loss in losses} == {torch.float32}
    sum(losses).backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


def test_gradients_accumulate():
    vae, x = UserVAE(), images(8)
    for half in (0, 1):
        recon, kl, _ = vae(x[4 * half : 4 * half + 4], make_key(0, half))
        ((recon + kl) / 2).backward()
    accumulated = gradients(vae)
    vae.zero_grad()
    halves = [vae(x[4 * half : 4 * half + 4], make_key(0, half)) for half in (0, 1)]
    (sum(recon + kl for recon, kl, _ in halves) / 2).backward()
    for name, grad in gradients(vae).items():
        torch.testing.assert_close(accumulated[name], grad, rtol=1e-5, atol=1e-6)


def _work(rank: int, port: int, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    ddp = DistributedDataParallel(UserVAE())
    x = images(8)[4 * rank : 4 * rank + 4]
    recon, kl, _ = ddp(x, make_key(0, rank))
    (recon + kl).backward()

    classes = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    metrics = StreamedMetrics(["mig"], (3, 4), options={"mig": {"points": None}})
    for batch in classes[rank::2].split(4):
        metrics.update(batch.float(), batch)
    torch.save((gradients(ddp.module), metrics.compute()["mig"]["score"]), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_work, (port, str(tmp_path)), nprocs=2)
    vae, x = UserVAE(), images(8)
    for rank in (0, 1):
        recon, kl, _ = vae(x[4 * rank : 4 * rank + 4], make_key(0, rank))
        ((recon + kl) / 2).backward()
    for rank in (0, 1):
        found, score = torch.load(tmp_path / f"{rank}.pt")
        for name, grad in gradients(vae).items():
            torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-6)
        assert score == pytest.approx(1.0)  # of the codes of both


def test_func_transforms():
    vae, x = UserVAE(), images(5)
    parameters = dict(vae.named_parameters())

    def loss(parameters, image, key):
        recon, kl, _ = torch.func.functional_call(vae, parameters, (image[None], key))
        return recon + kl

    keys = torch.stack([make_key(0, i) for i in range(5)])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, keys)
    for i in range(5):
        vae.zero_grad()
        recon, kl, _ = vae(x[i : i + 1], keys[i])
        (recon + kl).backward()
        for name, grad in gradients(vae).items():
            torch.testing.assert_close(each[name][i], grad, rtol=1e-4, atol=1e-5)


USER_SCRIPT = """
import torch
from pyvae import bernoulli_nll, reparameterize_kl
from pyvae.metrics import StreamedMetrics
from pyvae.modules import BernoulliNLL, ReparameterizeKL, TotalCorrelationDiscriminatorLoss

mu = torch.zeros(2, 3)
z, kl = reparameterize_kl(mu, mu)
loss: torch.Tensor = bernoulli_nll(z, z.sigmoid(), reduction="sum") + kl.sum()
nll: torch.Tensor = BernoulliNLL(target_max=255).forward(z, z)
tc: torch.Tensor = TotalCorrelationDiscriminatorLoss(latents=3).discriminator_loss(z)
scores: dict[str, dict[str, object]] = StreamedMetrics(["mig"], [2, 3]).compute()
"""


def test_the_public_api_is_typed(tmp_path):
    pytest.importorskip("mypy")
    assert (Path(pyvae.__file__).parent / "py.typed").is_file()
    script = tmp_path / "user.py"
    right = len(USER_SCRIPT.splitlines())
    script.write_text(USER_SCRIPT + "bernoulli_nll(1, z)\nReparameterizeKL().forward()\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, cwd=Path(pyvae.__file__).parents[1]
    )
    found = [
        (int(line.split(":")[1]), line.split()[-1]) for line in done.stdout.splitlines() if ": error:" in line
    ]
    assert found == [(right + 1, "[arg-type]"), (right + 2, "[call-arg]")], done.stdout


def seconds_of(command):
    times = []
    for _ in range(4):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", command], check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_importing_is_not_much_slower_than_torch():
    assert seconds_of("import pyvae; pyvae.bernoulli_nll") < 1.5 * seconds_of("import torch")


def test_importing_leaves_heavy_packages_alone():
    heavy = [
        "h5py",
        "lightning",
        "matplotlib",
        "PIL",
        "pythae",
        "scipy",
        "sklearn",
        "tensorboard",
        "triton",
        "tyro",
    ]
    command = f"""
import sys, pyvae, pyvae.modules
pyvae.bernoulli_nll
found = [name for name in {heavy} if name in sys.modules]
sys.exit(f"imported {{found}}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
