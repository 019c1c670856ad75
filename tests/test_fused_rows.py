"""The weight of the KL and the end of a step as kernels, against the objectives and the ledger that torch trains by."""

import pytest
import torch

from fused import DEVICE, NAN, S, flags, held, launch, quick_interpreter
from pyvae.control import Control
from pyvae.engine.fused.weighting import initial_control, initial_weight, settings_of, weighting_of
from pyvae.engine.ledger import Ledger
from pyvae.objectives import DIPVAE, VAE, AnnealedVAE, BetaVAE, CapacityVAE, ControlVAE, Outputs
from pyvae.random import make_key


@pytest.fixture(autouse=True, scope="module")
def triton():
    pytest.importorskip("triton")
    with quick_interpreter():
        yield


LATENTS, P, BLOCKS = 10, 16, 3


def kl_parts(step: int, scale: float = 1.0) -> torch.Tensor:
    """``[S, BLOCKS, P]`` in multiples of 1 / 64, whose sums have no rounding; none in step 0."""
    generator = torch.Generator().manual_seed(step)
    parts = torch.randint(0, 40, (S, BLOCKS, P), generator=generator) * (step % 5) * scale / 64
    parts[..., LATENTS:] = 0
    return parts.double()


def plain_outputs(kl: torch.Tensor, control: Control | None = None) -> Outputs:
    nothing = torch.zeros(0)
    return Outputs(torch.zeros(()), kl, nothing, nothing, nothing, 100, control=control)


WEIGHTINGS = {
    "capacity": (
        CapacityVAE(gamma=1000.0, capacity=25.0, capacity_steps=10),
        CapacityVAE(gamma=0.3, capacity=4.0, capacity_steps=7),
    ),
    "linear": (
        AnnealedVAE(schedule="linear", annealing_steps=10),
        AnnealedVAE(schedule="linear", annealing_steps=3),
    ),
    "logistic": (
        AnnealedVAE(schedule="logistic", annealing_steps=12),
        AnnealedVAE(schedule="logistic", annealing_steps=7),
    ),
    "cyclical": (
        AnnealedVAE(schedule="cyclical", annealing_steps=17, cycles=4, proportion=0.5),
        AnnealedVAE(schedule="cyclical", annealing_steps=14, cycles=2, proportion=0.9),
    ),
    "stepwise": (
        ControlVAE(capacity=3.0, capacity_increment=0.5, capacity_period=3, kp=0.5, ki=0.1),
        ControlVAE(capacity=8.0, capacity_increment=1.5, capacity_period=2, beta_min=0.2, initial_beta=4.0),
    ),
    "constant, limited": (
        ControlVAE(schedule="constant", capacity=3.0, beta_max=1.5, kp=0.5, ki=0.2),
        ControlVAE(schedule="constant", capacity=40.0, beta_max=90.0, kp=3.0, ki=0.01),
    ),
    "straight, published": (
        ControlVAE(
            schedule="linear", capacity_steps=9, ki=0.3, anti_windup="published", proportional="linear"
        ),
        ControlVAE(
            schedule="linear", capacity_steps=30, kp=0.4, anti_windup="published", proportional="linear"
        ),
    ),
    "straight, limited, paper": (
        ControlVAE(schedule="linear", capacity_steps=9, ki=0.3, anti_windup="paper", beta_max=2.0),
        ControlVAE(schedule="linear", capacity_steps=4, ki=0.1, anti_windup="paper", beta_max=1.1),
    ),
    "adaptive": (
        ControlVAE(schedule="adaptive", capacity_steps=15, ki=0.2, kp=0.5),
        ControlVAE(schedule="adaptive", capacity_steps=30, capacity=5.0, adaptive_window=3),
    ),
    "adaptive, smoothed": (
        ControlVAE(
            schedule="adaptive",
            capacity_steps=15,
            ki=0.2,
            adaptive_smoothing=0.5,
            adaptive_compared="unlimited",
            adaptive_tie="hold",
        ),
        ControlVAE(
            schedule="adaptive",
            capacity_steps=18,
            adaptive_window=2,
            adaptive_smoothing=0.9,
            adaptive_compared="unlimited",
            adaptive_tie="hold",
        ),
    ),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weight_of_the_kl(name):
    """Twenty steps of two members with numbers of their own, a step apart."""
    objectives = WEIGHTINGS[name]
    weighting = weighting_of(objectives[0])
    assert weighting == weighting_of(objectives[1])
    settings = settings_of(objectives).to(DEVICE)
    state, moved = initial_control(objectives).to(DEVICE), torch.full((S, 5), NAN).double().to(DEVICE)
    expected_state = [o.initial_control("cpu") if isinstance(o, ControlVAE) else None for o in objectives]
    betas = set()
    for step in range(20):
        parts = kl_parts(step)
        kl = held(parts)
        key = torch.tensor([[1, step], [1, step + 1]], device=DEVICE)
        weight, terms = torch.full((S,), NAN, device=DEVICE), torch.full((S, 5), NAN).double().to(DEVICE)
        launch(
            "kl_weight", "kl_weight_kernel", 1,
            kl, key, settings, state, moved, weight, terms, BLOCKS, kl.stride, 5,
            KIND=weighting.kind, P=P, **weighting.options._asdict(),
        )  # fmt: skip
        for s, objective in enumerate(objectives):
            at, kls = torch.tensor(step + s), parts[s].sum(0)[:LATENTS].float()
            if expected_state[s] is not None:
                expected_state[s] = objective.control(expected_state[s], kls.sum(), at)
                assert moved[s].tolist() == pytest.approx([float(x) for x in expected_state[s]], rel=1e-12)
            expected = objective.terms(plain_outputs(kls, expected_state[s]), at)
            share, beta, capacity, *others = terms[s].tolist()
            assert share == pytest.approx(float(expected["loss"]), rel=1e-6)
            # gamma times a sign is float32 there
            assert beta == pytest.approx(float(expected["beta"]), rel=1e-7 if name == "capacity" else 1e-12)
            assert capacity == pytest.approx(float(expected["capacity"]), rel=1e-12)
            assert weight[s].item() == pytest.approx(beta, rel=1e-7)
            assert all(x != x for x in others)
            betas.add(beta)
        if weighting.kind == "control":
            state.copy_(moved)
    assert len(betas) > 2


def test_weight_of_a_kl_that_is_no_number():
    objectives = WEIGHTINGS["capacity"]
    parts = kl_parts(1)
    parts[1, 2, 3] = NAN
    kl, key = held(parts), torch.tensor([[1, 1], [1, 1]], device=DEVICE)
    weight, terms = torch.zeros(S, device=DEVICE), torch.zeros(S, 3).double().to(DEVICE)
    none = torch.zeros(S, 5).double().to(DEVICE)
    launch(
        "kl_weight", "kl_weight_kernel", 1,
        kl, key, settings_of(objectives).to(DEVICE), none, none, weight, terms, BLOCKS, kl.stride, 3,
        KIND="capacity", P=P, **weighting_of(objectives[0]).options._asdict(),
    )  # fmt: skip
    assert weight.isnan().tolist() == [False, True]


def test_constant_weights():
    assert [weighting_of(o).kind for o in (VAE(), BetaVAE(beta=3.0), DIPVAE())] == [
        "constant",
        "constant",
        "seam",
    ]
    assert [initial_weight(o) for o in (VAE(), BetaVAE(beta=3.0))] == [1.0, 3.0]


# the end of a step

NLLS, SQUARES, IMAGES, EVERY, ROWS = 1500, 1100, 8, 3, 4
"""Parts of which no whole number fills the kernel's blocks."""


class Ends:
    """Steps of two members, one after another, by the kernel and by a ledger of each."""

    def __init__(
        self, *, constant: bool = False, controlled: bool = True, extra: int = 1, behind: int = 2
    ) -> None:
        self.constant, self.controlled, self.extra, self.behind = constant, controlled, extra, behind
        self.terms = 3 + extra + behind
        fields = self.fields = 3 + self.terms + LATENTS
        control = lambda s: Control(*torch.full((5,), float(s)).double().unbind())  # noqa: E731
        self.ledgers = [
            Ledger(
                [str(i) for i in range(fields)],
                seed=s,
                rows=ROWS,
                log_every=EVERY,
                device=torch.device("cpu"),
                control=control(s) if controlled else None,
            )
            for s in range(S)
        ]

        def zeros(*shape: int, dtype=torch.float64) -> torch.Tensor:
            return torch.zeros(S, *shape, dtype=dtype, device=DEVICE)

        self.key = torch.stack([make_key(s) for s in range(S)]).to(DEVICE)
        self.row, self.bad_row, self.ring = zeros(fields), zeros(fields), zeros(ROWS + 1, fields)
        self.bad_step = torch.full((S,), -1, device=DEVICE)
        self.state, self.moved = zeros(5) + torch.arange(S, device=DEVICE)[:, None], zeros(5)
        self.flags, self.found_inf = flags(), zeros(dtype=torch.float32)
        self.weight = torch.tensor([2.0, 0.5], device=DEVICE)

    def step(self, spoil: dict | None = None) -> list[float]:
        """Both ways; returns found_inf. ``spoil``: (what, index) of member 1 and what it becomes there."""
        at = int(self.key[0, 1])
        g = torch.Generator().manual_seed(at)
        values = {
            "nll": torch.rand(S, NLLS, generator=g) * 100,
            "kl": torch.rand(S, BLOCKS, P, generator=g),
            "squares": torch.rand(S, SQUARES, generator=g),
            "terms": torch.rand(S, self.terms, generator=g).double(),
            "moved": torch.rand(S, 5, generator=g).double(),
        }
        values["kl"][..., LATENTS:] = 0
        for (name, place), value in (spoil or {}).items():
            values[name][1].view(-1)[place] = value
        self.moved.copy_(values["moved"])
        nll, kl, squares = (held(values[name].double()) for name in ("nll", "kl", "squares"))
        flagged = [bool(f & 1) for f in self.flags.tolist()]
        launch(
            "member_rows", "member_rows_kernel", 1,
            nll, kl, squares, self.weight, values["terms"].to(DEVICE), self.flags, self.found_inf, self.bad_step,
            self.key, self.row, self.bad_row, self.ring, self.state, self.moved,
            NLLS, BLOCKS, SQUARES, IMAGES, LATENTS, EVERY, ROWS, nll.stride, kl.stride, squares.stride,
            P=P, CONSTANT=self.constant, CONTROLLED=self.controlled, EXTRA=self.extra, BEHIND=self.behind,
            BLOCK=1024,
        )  # fmt: skip
        return [self._expect(s, {n: v[s] for n, v in values.items()}, flagged[s]) for s in range(S)]

    def _expect(self, s: int, values: dict[str, torch.Tensor], flagged: bool) -> float:
        recon = values["nll"].double().sum() / IMAGES
        kls = values["kl"].sum(0)[:LATENTS]
        kl, terms = kls.sum(), values["terms"]
        share = float(self.weight[s]) * kl.double() if self.constant else terms[0]
        norm = values["squares"].double().sum().sqrt()
        row = [recon + share, recon, kl.double(), *terms[1 : 3 + self.extra], norm, *terms[3 + self.extra :]]
        if flagged and all(v.isfinite() for v in (*row, *kls)):
            row[5 + self.extra] = torch.tensor(float("inf")).double()
        moved = Control(*values["moved"].unbind()) if self.controlled else None
        found = float(self.ledgers[s].settle(row, kls, moved))
        self._compare(s)
        return found

    def _compare(self, s: int) -> None:
        ledger = self.ledgers[s]
        for name in ("row", "bad_row"):
            torch.testing.assert_close(
                getattr(self, name)[s].cpu(),
                getattr(ledger, name),
                rtol=1e-6,
                atol=0,
                equal_nan=True,
                msg=name,
            )
        # the last row is for those that are not logged
        torch.testing.assert_close(
            self.ring[s, :-1].cpu(), ledger.ring.rows[:-1], rtol=1e-6, atol=0, equal_nan=True
        )
        assert int(self.bad_step[s]) == int(ledger.bad_step)
        assert self.key[s].tolist() == ledger.key.tolist()
        if self.controlled:
            assert self.state[s].tolist() == [float(x) for x in ledger.control]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("extra", "behind"), [(0, 0), (1, 2)])
def test_rows(constant, extra, behind):
    """More steps than the ring holds."""
    ends = Ends(constant=constant, controlled=not constant, extra=extra, behind=behind)
    for _ in range(EVERY * (ROWS + 2)):
        assert ends.step() == [0.0, 0.0]
        assert ends.found_inf.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "place",
    [
        *(("nll", 3), ("nll", NLLS - 1), ("kl", 0), ("kl", P + LATENTS - 1)),
        *(("squares", SQUARES - 1), ("terms", 0), ("terms", 2), ("terms", 3), ("terms", 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_the_first_bad_step_is_kept(place, value):
    """The other member goes on; the controller of the bad one stays."""
    ends = Ends()
    for at in range(6):
        found = ends.step({place: value} if at in (2, 4) else None)
        assert ends.found_inf.tolist() == found == [0.0, float(at >= 2)]
    assert ends.flags.tolist() == [0, 1]
    assert ends.bad_step.tolist() == [-1, 2]


def test_a_flag_is_told_by_an_infinite_norm():
    """Where a part of a gradient was not finite, and nothing else of the row says so."""
    ends = Ends()
    ends.step()
    ends.flags[1] = 1
    ends.step()
    assert ends.row[:, 6].tolist() == [pytest.approx(float(ends.row[0, 6])), float("inf")]
    assert ends.bad_step.tolist() == [-1, 1]
    assert ends.row[0, 6].isfinite()


def test_a_frozen_member_stays_as_it_was():
    """Whatever is computed of it; the other goes on."""
    ends = Ends()
    ends.step()
    ends.flags[1] = 2
    kept = ("row", "bad_row", "ring", "bad_step", "key", "state", "flags")
    before = {name: getattr(ends, name)[1].clone() for name in kept}
    for spoil in (None, {("kl", 1): NAN}):
        # of the frozen one, a ledger would go on
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ends, "_compare", lambda s: s or Ends._compare(ends, s))
            ends.step(spoil)
        assert ends.found_inf.tolist() == [0.0, 1.0]
        for name, value in before.items():
            assert torch.equal(getattr(ends, name)[1], value), name
    assert ends.key[0].tolist() == [0, 3]
