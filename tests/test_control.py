import json
import math
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyvae.control import Control, adapt_capacity, initial_control, pi
from pyvae.engine.recipe import Recipe
from pyvae.errors import RecipeError
from pyvae.objectives import TERMS, ControlVAE, Outputs
from pyvae.recipes import RECIPES

SCHEDULES = ("constant", "stepwise", "linear", "adaptive")
ANTI_WINDUP = ("conditional", "published", "paper")


def torch_exp(x):
    return float(torch.tensor(x, dtype=torch.float64).exp())


class Transcription:
    """The equations in Python floats, one branch for each case, of one member."""

    def __init__(self, setting, exp):
        self.s, self.exp = setting, exp
        self.integral = 0.0
        self.output = self.beta = self.reference = setting.initial_beta
        self.capacity = setting.capacity if setting.schedule == "constant" else setting.capacity_start
        self.frozen = 0

    def step(self, kl, step):
        s, t = self.s, step + 1
        if s.schedule == "stepwise":
            self.capacity = min(
                s.capacity_start + s.capacity_increment * (t // s.capacity_period), s.capacity
            )
        elif s.schedule == "linear":
            part = min(step / s.capacity_steps, 1.0)
            self.capacity = s.capacity_start + (s.capacity - s.capacity_start) * part
        e = self.capacity - kl
        p = s.kp * (1.0 / (1.0 + self.exp(e))) if s.proportional == "sigmoid" else -s.kp * e
        top = math.inf if s.beta_max is None else s.beta_max
        if s.anti_windup == "published":
            frozen = self.output < s.beta_min or self.output > top
        elif s.anti_windup == "paper":
            frozen = self.beta < s.beta_min or self.beta > top
        else:
            frozen = (self.output < s.beta_min and e > 0) or (self.output > top and e < 0)
        self.frozen += frozen
        if not frozen:
            self.integral = self.integral - s.ki * e
        self.output = p + s.beta_min + self.integral
        self.beta = min(max(self.output, s.beta_min), top)
        if s.schedule == "adaptive":
            self.adapt(t)
        return [self.integral, self.output, self.beta, self.reference, self.capacity]

    def adapt(self, t):
        s, w = self.s, self.s.adaptive_window
        if t > s.capacity_steps:
            self.capacity = s.capacity
        if t % w:
            return
        beta = self.beta if s.adaptive_compared == "limited" else self.output
        holds = beta > self.reference or (beta == self.reference and s.adaptive_tie == "hold")
        if not holds and t <= s.capacity_steps:
            windows = (s.capacity_steps - (t - w)) / w
            raised = self.capacity + (s.capacity - self.capacity) / windows if windows > 1 else s.capacity
            self.capacity = min(raised, s.capacity)
        a = s.adaptive_smoothing
        self.reference = a * self.reference + (1 - a) * beta if a else beta


def random_kl(seed, steps, low=0.0, high=40.0):
    """A walk with jumps, so that errors are of both signs, small and large."""
    rng = random.Random(seed)
    kl = 0.5
    for _ in range(steps):
        kl = rng.uniform(low, high) if rng.random() < 0.02 else min(max(kl + rng.gauss(0, 1.0), low), high)
        yield kl


def run(setting, kls, state=None, start=0):
    """The state after each step, and the last one."""
    state = setting.initial_control("cpu") if state is None else state
    rows = []
    for step, kl in enumerate(kls, start):
        state = setting.control(state, torch.tensor(kl, dtype=torch.float64), torch.tensor(step))
        rows.append([float(x) for x in state])
    return rows, state


SETTINGS = {
    **{
        f"{anti}-{p}-{top}": ControlVAE(
            capacity=18.0, schedule="constant", anti_windup=anti, proportional=p, beta_max=top, ki=0.003
        )
        for anti in ANTI_WINDUP
        for p in ("sigmoid", "linear")
        for top in (None, 1.2)
    },
    "large-gain": ControlVAE(kp=5.0, schedule="constant"),
    "authors-linear": ControlVAE(
        proportional="linear", beta_min=0.9, anti_windup="published", capacity_period=20
    ),
    "started-below": ControlVAE(initial_beta=0.0, anti_windup="paper", schedule="constant"),
    "stepwise": ControlVAE(capacity_period=7),
    "linear": ControlVAE(schedule="linear", capacity_steps=900),
    "adaptive": ControlVAE(schedule="adaptive", capacity_steps=1500),
    "adaptive-short": ControlVAE(schedule="adaptive", capacity_steps=500, anti_windup="published"),
    "adaptive-limits": ControlVAE(schedule="adaptive", capacity_steps=1500, beta_max=1.05),
    "adaptive-unlimited": ControlVAE(schedule="adaptive", capacity_steps=1500, adaptive_compared="unlimited"),
    "adaptive-tie": ControlVAE(schedule="adaptive", capacity_steps=1500, adaptive_tie="hold"),
    "adaptive-smooth": ControlVAE(schedule="adaptive", capacity_steps=1500, adaptive_smoothing=0.9),
    "adaptive-window": ControlVAE(schedule="adaptive", capacity_steps=1400, adaptive_window=9),
    "adaptive-both": ControlVAE(
        schedule="adaptive", capacity_steps=1501, adaptive_window=4, adaptive_smoothing=0.5
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_bit_for_bit_the_equations(name):
    setting = SETTINGS[name]
    for seed in range(2):
        kls = list(random_kl(seed, 1600))
        plain = Transcription(setting, torch_exp)
        expected = [plain.step(kl, step) for step, kl in enumerate(kls)]
        assert run(setting, kls)[0] == expected
        if setting.ki == 0.003 and setting.anti_windup != "paper":
            assert plain.frozen > 0


@pytest.mark.parametrize("anti_windup", ANTI_WINDUP)
def test_the_exponential_of_the_c_library_moves_the_output_by_a_rounding_alone(anti_windup):
    """torch's exp and C's differ in the last place; P is a hundredth of beta, and the integral does not see it."""
    setting = ControlVAE(anti_windup=anti_windup, capacity_period=30)
    kls = list(random_kl(5, 3000, high=20.0))
    rows, _ = run(setting, kls)
    plain = Transcription(setting, math.exp)
    for step, (row, kl) in enumerate(zip(rows, kls, strict=True)):
        expected = plain.step(kl, step)
        assert row[0] == expected[0]
        assert abs(row[1] - expected[1]) <= math.ulp(expected[1])


def test_the_first_steps_by_hand():
    """C = 0.5, KL = 0.1: beta(1) = 1 + 0.01 / (1 + exp(0.4)) - 0.0004."""
    rows, _ = run(ControlVAE(), [0.1])
    integral, output, beta, _, capacity = rows[0]
    assert integral == -0.001 * (0.5 - 0.1)
    assert output == beta == pytest.approx(1.003613, abs=1e-6)
    assert capacity == 0.5


def at(integral=0.0, output=1.0, **kwargs):
    """A state with this integral and output; 0-d float64."""
    state = initial_control("cpu", beta=output, capacity=0.0)
    values = {"integral": integral, "beta": max(output, 1.0), **kwargs}
    return state._replace(**{k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()})


def controlled(state, error, **options):
    options = {"kp": 0.01, "ki": 0.001, "beta_min": 1.0, **options}
    return pi(state, torch.tensor(error, dtype=torch.float64), **options)


@pytest.mark.parametrize("anti_windup", ANTI_WINDUP)
@pytest.mark.parametrize("proportional", ["sigmoid", "linear"])
def test_no_error_leaves_the_integral(anti_windup, proportional):
    for integral, output in ((0.7, 1.7), (-0.3, 0.71), (0.0, 1.0)):
        options = {"anti_windup": anti_windup, "proportional": proportional}
        assert controlled(at(integral, output), 0.0, **options).integral == integral


@pytest.mark.parametrize("anti_windup", ANTI_WINDUP)
@pytest.mark.parametrize("proportional", ["sigmoid", "linear"])
def test_a_kl_above_capacity_raises_beta(anti_windup, proportional):
    options = {"anti_windup": anti_windup, "proportional": proportional}
    state = controlled(at(), -2.0, **options)
    assert state.beta > 1.0
    for _ in range(50):
        before, state = state, controlled(state, -2.0, **options)
        assert state.beta > before.beta
    betas = [float(controlled(at(0.5, 1.5), c - 10.0, **options).beta) for c in range(21)]
    assert betas == sorted(betas, reverse=True)
    assert len(set(betas)) == 21


@pytest.mark.parametrize("anti_windup", ANTI_WINDUP)
@pytest.mark.parametrize("proportional", ["sigmoid", "linear"])
@pytest.mark.parametrize("limits", [(1.0, None), (0.0, 1.0), (1.0, 1.1), (0.9, 0.9)])
def test_beta_is_within_its_limits(anti_windup, proportional, limits):
    setting = ControlVAE(
        anti_windup=anti_windup,
        proportional=proportional,
        beta_min=limits[0],
        beta_max=limits[1],
        kp=0.5,
        ki=0.02,
        capacity=20.0,
        schedule="constant",
    )
    kls = [0.0] * 30 + [40.0] * 100 + list(random_kl(1, 500))
    betas = [row[2] for row in run(setting, kls)[0]]
    assert min(betas) == limits[0]
    if limits[1] is None:
        assert max(betas) > 1.5
    else:
        assert max(betas) == limits[1]


def plant(setting, steps, seed=0, noise=0.3):
    """Closes the loop on a model whose KL settles at 25 / beta^0.4 nats within some 100 steps; rows of the state and
    the last KL."""
    rng = random.Random(seed)
    kl, rows = 0.0, []
    state = setting.initial_control("cpu")
    for step in range(steps):
        seen = max(kl + rng.gauss(0, noise), 0.0)
        state = setting.control(state, torch.tensor(seen, dtype=torch.float64), torch.tensor(step))
        kl += 0.01 * (25.0 * float(state.beta) ** -0.4 - kl)
        rows.append([float(x) for x in state])
    return rows, kl


class TestLatchUp:
    """A set point of 18 nats from a KL of 0: the integral falls to -0.018 in one step, below -Kp."""

    SETTING = ControlVAE(capacity=18.0, schedule="constant")
    ONE_STEP = -(18.0 * 0.001)

    def test_published_never_recovers(self):
        rows, _ = run(replace(self.SETTING, anti_windup="published"), [0.0] + [100.0] * 1000)
        assert {row[0] for row in rows} == {self.ONE_STEP}
        assert {row[2] for row in rows} == {1.0}

    def test_published_does_not_control(self):
        rows, kl = plant(replace(self.SETTING, anti_windup="published"), 4000)
        assert {row[2] for row in rows} == {1.0}
        assert kl > 24.5

    def test_a_first_error_below_kp_over_ki_does_not_latch(self):
        setting = replace(self.SETTING, anti_windup="published", capacity=9.0)
        assert plant(setting, 6000)[1] == pytest.approx(9.0, abs=0.5)

    def test_the_default_recovers_at_once(self):
        rows, _ = run(self.SETTING, [0.0] * 1000 + [100.0])
        assert rows[999][0] == self.ONE_STEP
        assert rows[999][2] == 1.0
        assert rows[1000][0] == self.ONE_STEP + 0.001 * 82.0
        assert rows[1000][2] > 1.07

    def test_the_default_controls(self):
        assert plant(self.SETTING, 4000)[1] == pytest.approx(18.0, abs=0.5)

    def test_the_default_does_not_latch_at_the_upper_limit(self):
        setting = replace(self.SETTING, beta_max=1.05)
        rows, _ = run(setting, [100.0] * 1000 + [0.0] * 10)
        assert rows[999][2] == 1.05
        assert rows[999][0] < 0.2
        assert rows[1009][2] == 1.0

    def test_the_paper_s_test_of_the_limited_beta_winds_up(self):
        setting = replace(self.SETTING, anti_windup="paper")
        rows, _ = run(setting, [0.0] * 1000 + [100.0] * 300)
        assert rows[999][0] == pytest.approx(-18.0)
        assert rows[1200][2] == 1.0
        assert rows[1299][2] > 1.0

    @pytest.mark.parametrize("schedule", ["stepwise", "adaptive"])
    def test_the_published_runs_do_not_latch(self, schedule):
        """C begins at half a nat, so the integral is frozen before it is out of P's reach."""
        setting = ControlVAE(schedule=schedule, anti_windup="published", capacity_period=50)
        rows, _ = run(setting, [0.0] * 3000 + [20.0] * 2000)
        assert rows[2999][2] == 1.0
        assert rows[-1][2] > 2.0


def adapt(setting, rises, steps=None, stop=16.0, lead=(), **options):
    """C(t) after each step, beta raised or not by ``rises(step)``."""
    state = initial_control("cpu", lead, beta=1.0, capacity=0.5)
    for step in range(steps or setting):
        rise = torch.as_tensor(rises(step), dtype=torch.float64)
        beta = (state.reference + rise).expand(lead).contiguous()
        moved = state._replace(beta=beta, output=beta)
        state = adapt_capacity(moved, torch.tensor(step), stop=stop, steps=setting, **options)
        yield state.capacity


class TestAdaptive:
    @pytest.mark.parametrize("total", [1, 7, 1000])
    def test_if_every_step_succeeds_it_is_the_straight_ramp(self, total):
        path = [float(c) for c in adapt(total, lambda step: -0.01)]
        for t, c in enumerate(path, 1):
            assert c == pytest.approx(0.5 + 15.5 * t / total, rel=1e-12)
        assert path[-1] == 16.0

    @pytest.mark.parametrize("stop", [16.0, 0.7, 1.1, 13.37])
    def test_it_ends_exactly_at_its_maximum(self, stop):
        path = [float(c) for c in adapt(333, lambda step: 0.0, steps=400, stop=stop)]
        assert max(path) == path[-1] == path[332] == stop

    @pytest.mark.parametrize("stop", [13.33, 15.88])
    def test_a_late_jump_ends_exactly_at_its_maximum(self, stop):
        """For these, C + (stop - C) is a rounding below and above."""
        path = [float(c) for c in adapt(9, lambda step: 0.01 if 1 <= step <= 7 else -0.01, stop=stop)]
        assert path[0] == path[7]
        assert path[7] + (stop - path[7]) != stop
        assert path[8] == stop

    def test_if_no_step_succeeds_it_stays_and_jumps_past_the_end(self):
        path = [float(c) for c in adapt(20, lambda step: 0.01, steps=22)]
        assert path == [0.5] * 20 + [16.0] * 2

    def test_an_unchanged_beta_raises_it_or_holds_it(self):
        assert float(next(adapt(10, lambda step: 0.0))) == 0.5 + 15.5 / 10
        assert float(next(adapt(10, lambda step: 0.0, tie="hold"))) == 0.5

    @pytest.mark.parametrize("window", [5, 25])
    def test_windows_keep_the_ramp(self, window):
        path = [float(c) for c in adapt(100, lambda step: 0.0, window=window)]
        for t, c in enumerate(path, 1):
            assert c == pytest.approx(0.5 + 15.5 * (t // window * window) / 100, rel=1e-12)

    @pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
    def test_coin_flips_follow_the_power_law(self, p):
        """The gap is (1 - t/T)^p in the mean of its logarithm; 4,000 members leave it a standard error below 5e-4."""
        total, members = 1000, 4000
        generator = torch.Generator().manual_seed(int(p * 10))
        paths = adapt(
            total,
            lambda step: (torch.rand(members, generator=generator) >= p).double() - 0.5,
            lead=(members,),
        )
        previous = torch.full((members,), 0.5)
        for t, c in enumerate(paths, 1):
            assert (c >= previous).all()
            assert (c <= 16.0).all()
            previous = c
            if t in (100, 333, 500, 800):
                gap = ((16.0 - c) / 15.5).log().mean()
                assert float(gap) == pytest.approx(p * math.log(1 - t / total), abs=2.5e-3)

    def test_noise_in_the_kl_makes_the_square_root_law(self):
        """A KL that follows C but for the batch's noise makes the sign of each move a coin flip."""
        setting = ControlVAE(schedule="adaptive", capacity_steps=3000)
        state = setting.initial_control("cpu", (64,))
        generator = torch.Generator().manual_seed(0)
        for step in range(2400):
            noise = torch.randn(64, generator=generator, dtype=torch.float64) * 0.5
            state = setting.control(state, state.capacity + noise, torch.tensor(step))
            if step + 1 in (1000, 1600, 2000, 2400):
                law = 16 - 15.5 * math.sqrt(1 - (step + 1) / 3000)
                assert float(state.capacity.mean()) == pytest.approx(law, abs=0.35)

    def test_smoothing_takes_the_coin_flips_out(self):
        """Against its moving average, a beta that falls on the whole lets C rise nearly always."""

        def raised(**options):
            setting = ControlVAE(schedule="adaptive", capacity_steps=10_000, **options)
            falling = torch.full((64,), 50.0, dtype=torch.float64)
            state = setting.initial_control("cpu", (64,))._replace(integral=falling, reference=falling + 1.0)
            generator = torch.Generator().manual_seed(0)
            count = 0
            for step in range(800):
                noise = torch.randn(64, generator=generator, dtype=torch.float64)
                before = state
                state = setting.control(state, state.capacity - 0.1 + noise, torch.tensor(step))
                count += int((state.capacity > before.capacity).sum()) if step >= 400 else 0
            return count / (400 * 64) * options.get("adaptive_window", 1)

        assert raised() == pytest.approx(0.5, abs=0.05)
        assert raised(adaptive_smoothing=0.995) > 0.75
        assert raised(adaptive_window=100) > 0.75

    def test_the_first_step_of_a_fresh_model_holds(self):
        rows, _ = run(ControlVAE(schedule="adaptive"), [0.1])
        assert rows[0][2] > 1.0
        assert rows[0][4] == 0.5

    def test_beta_is_computed_against_the_capacity_before(self):
        setting = ControlVAE(schedule="adaptive", capacity_steps=4)
        state = setting.initial_control("cpu")._replace(integral=torch.tensor(1.0, dtype=torch.float64))
        state = state._replace(reference=torch.tensor(5.0, dtype=torch.float64))
        after = setting.control(state, torch.tensor(0.25), torch.tensor(0))
        assert float(after.integral) == 1.0 - 0.001 * 0.25
        assert float(after.capacity) == 0.5 + 15.5 / 4


def test_stepwise_capacity_is_that_of_the_published_runs():
    for setting, iteration in ((ControlVAE(), 520_000), (ControlVAE(capacity=18.0), 585_000)):
        state = setting.initial_control("cpu")
        kl = torch.tensor(1.0)
        assert float(setting.control(state, kl, torch.tensor(0)).capacity) == 0.5
        assert float(setting.control(state, kl, torch.tensor(4_999)).capacity) == 0.65
        before = float(setting.control(state, kl, torch.tensor(iteration - 2)).capacity)
        assert setting.capacity - 0.15 < before < setting.capacity
        for step in (iteration - 1, iteration, 1_499_999):
            assert float(setting.control(state, kl, torch.tensor(step)).capacity) == setting.capacity


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("members", [1, 2, 5, 9])
def test_ensemble_members_move_as_they_would_alone(schedule, members):
    setting = ControlVAE(schedule=schedule, capacity_steps=60, capacity_period=5)
    together = setting.initial_control("cpu", (members,))
    alone = [setting.initial_control("cpu") for _ in range(members)]
    for step, kls in enumerate(zip(*(random_kl(seed, 50) for seed in range(members)), strict=True)):
        at_step, kl = torch.tensor(step), torch.tensor(kls, dtype=torch.float64)
        together = setting.control(together, kl, at_step)
        alone = [setting.control(state, kl[i], at_step) for i, state in enumerate(alone)]
    for field, value in together._asdict().items():
        assert value.shape == (members,)
        assert value.is_contiguous()
        assert value.tolist() == [float(getattr(state, field)) for state in alone]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_saved_state_goes_on_bit_for_bit(schedule, tmp_path):
    setting = ControlVAE(schedule=schedule, capacity_steps=90, capacity_period=9, adaptive_smoothing=0.5)
    setting = replace(setting, adaptive_smoothing=0.0) if schedule == "linear" else setting
    kls = list(random_kl(3, 100))
    rows, _ = run(setting, kls)
    for cut in (0, 1, 50):
        _, state = run(setting, kls[:cut])
        save_file(state._asdict(), tmp_path / "state.safetensors")
        loaded = Control(**load_file(tmp_path / "state.safetensors"))
        assert run(setting, kls[cut:], loaded, start=cut)[0] == rows[cut:]


def test_no_two_parts_of_a_state_share_memory():
    for smoothing in (0.0, 0.5):
        setting = ControlVAE(schedule="adaptive", adaptive_smoothing=smoothing)
        state = setting.initial_control("cpu")
        for _ in range(2):
            assert len({x.data_ptr() for x in state}) == len(state)
            assert {x.dtype for x in state} == {torch.float64}
            state = setting.control(state, torch.tensor(1.0), torch.tensor(0))


class OnDevice(TorchDispatchMode):
    """Refuses what reads a value back, and every tensor that is not on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, func
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            assert not isinstance(x, torch.Tensor) or x.device.type == "cuda", func
        return result


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_leaves_the_device(name):
    """On a GPU's tensors without values, so without the GPU: what is made on the host would be copied, which a graph
    cannot capture."""
    setting = SETTINGS[name]
    with FakeTensorMode():
        kl = torch.zeros(3, device="cuda")
        step = torch.zeros((), dtype=torch.int64, device="cuda")
        with OnDevice():
            state = setting.initial_control(torch.device("cuda"), (3,))
            state = setting.control(state, kl, step)
            out = Outputs(kl, torch.zeros(3, 4, device="cuda"), kl, kl, kl, 100, control=state)
            terms = setting.terms(out, step)
    assert all(x.shape == (3,) for x in (*state, *terms.values()))


def test_what_leaves_the_device_is_seen():
    host = torch.tensor(2.0)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), OnDevice():
        host.item()
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.zeros(3, device="cuda")
        with pytest.raises(AssertionError, match="mul"), OnDevice():
            x * host


@pytest.mark.parametrize("schedule", ["stepwise", "adaptive"])
def test_it_compiles_into_one_graph(schedule):
    setting = ControlVAE(schedule=schedule, capacity_steps=50, capacity_period=3, beta_max=3.0)
    compiled = torch.compile(setting.control, fullgraph=True)
    state = mine = setting.initial_control("cpu")
    for step, kl in enumerate(random_kl(0, 20)):
        arguments = torch.tensor(kl), torch.tensor(step)
        state, mine = setting.control(state, *arguments), compiled(mine, *arguments)
    assert isinstance(mine, Control)
    for a, b in zip(state, mine, strict=True):
        torch.testing.assert_close(b, a, rtol=4e-16, atol=0)


def outputs(control, lead=()):
    def zeros():
        return torch.zeros(*lead, 6, 3)

    recon = torch.full(lead, 100.0, requires_grad=True)
    kl = torch.tensor([1.0, 2.0, 0.5]).expand(*lead, 3).clone().requires_grad_()
    return Outputs(recon, kl, zeros(), zeros(), zeros(), 100, control=control)


class TestTerms:
    def test_the_kl_is_weighed_with_beta(self):
        out = outputs(at(0.5, 1.5, capacity=3.0))
        terms = ControlVAE().terms(out, torch.tensor(0))
        assert set(terms) == set(TERMS)
        assert terms["loss"].dtype == torch.float32
        assert terms["loss"].item() == 100 + 1.5 * 3.5
        assert (float(terms["beta"]), float(terms["capacity"])) == (1.5, 3.0)
        assert terms["beta"].dtype == terms["capacity"].dtype == torch.float64

    def test_beta_is_not_differentiated(self):
        out, setting = outputs(None), ControlVAE(proportional="linear", kp=1.0)
        state = setting.control(setting.initial_control("cpu"), out.kl.sum(-1), torch.tensor(0))
        assert not any(x.requires_grad for x in state)
        terms = setting.terms(out._replace(control=state), torch.tensor(0))
        d_recon, d_kl = torch.autograd.grad(terms["loss"], out[:2])
        assert d_recon == 1
        assert float(state.beta) == pytest.approx(1 + 3.0 + 0.003)
        assert d_kl.tolist() == [float(state.beta.float())] * 3

    def test_members_keep_their_own(self):
        state = ControlVAE().initial_control("cpu", (2,))._replace(beta=torch.tensor([1.0, 3.0]).double())
        terms = ControlVAE().terms(outputs(state, (2,)), torch.tensor(0))
        assert terms["loss"].tolist() == [103.5, 110.5]
        assert all(value.shape == (2,) for value in terms.values())

    def test_a_missing_state_is_named(self):
        with pytest.raises(ValueError, match=r"outputs.control is missing; see ControlVAE.control"):
            ControlVAE().terms(outputs(None), torch.tensor(0))


def test_the_state_on_a_small_model_trains():
    """The loop that a trainer makes: a KL of one weight, driven to its capacity."""
    setting = ControlVAE(capacity=2.0, schedule="constant", ki=0.01, initial_beta=1.0)
    mu = torch.tensor([3.0], requires_grad=True)
    state, step = setting.initial_control("cpu"), torch.zeros((), dtype=torch.int64)
    optimizer = torch.optim.SGD([mu], lr=0.02)
    for _ in range(2500):
        kl = 0.5 * mu.square()
        recon = 2.0 * (mu - 5.0).square().sum()
        state = setting.control(state, kl.sum(-1).detach(), step)
        out = Outputs(recon, kl, mu[None], mu[None], mu[None], 1, control=state)
        optimizer.zero_grad()
        setting.terms(out, step)["loss"].backward()
        optimizer.step()
        step += 1
    assert kl.item() == pytest.approx(2.0, abs=0.02)
    # at KL = 2, mu = 2 and 4 (5 - mu) = beta mu
    assert float(state.beta) == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity_period": 0}, "capacity_period must be at least 1, got 0"),
        ({"capacity_steps": 0}, "capacity_steps must be at least 1"),
        ({"adaptive_window": 0}, "adaptive_window must be at least 1"),
        ({"ki": -0.001}, "ki must be at least 0, got -0.001"),
        ({"kp": float("nan")}, "kp must be finite, got nan"),
        ({"capacity_start": -1.0}, "capacity_start must be at least 0"),
        ({"capacity_increment": 0.0}, "capacity_increment must be above 0"),
        ({"adaptive_smoothing": 1.0}, "adaptive_smoothing must be below 1"),
        ({"capacity": 0.25}, "capacity 0.25 is below capacity_start 0.5"),
        ({"beta_max": 0.5}, "beta_max 0.5 is below beta_min 1.0"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        ControlVAE(**change)


def test_a_constant_capacity_needs_no_start():
    setting = ControlVAE(schedule="constant", capacity=0.25)
    assert float(setting.initial_control("cpu").capacity) == 0.25


@pytest.mark.parametrize(
    "option", ["schedule", "proportional", "anti_windup", "adaptive_compared", "adaptive_tie"]
)
def test_an_unknown_option_is_named(option):
    with pytest.raises(RecipeError, match=f"{option} must be .*, got 'none'"):
        ControlVAE(**{option: "none"})


PI = {"kp": 0.01, "ki": 0.001, "beta_min": 1.0}
ADAPTIVE = {"stop": 16.0, "steps": 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kp": -1.0}, "kp: expected a gain of at least 0, got -1.0"),
        ({"ki": math.nan}, "ki: expected a gain of at least 0, got nan"),
        ({"beta_max": 0.5}, "beta_max: expected at least beta_min 1.0, got 0.5"),
        ({"proportional": "none"}, "proportional: expected .*, got 'none'"),
        ({"anti_windup": "none"}, "anti_windup: expected .*, got 'none'"),
    ],
)
def test_a_step_of_the_controller_names_what_cannot_be(change, message):
    state = initial_control("cpu", beta=1.0, capacity=0.5)
    with pytest.raises(ValueError, match=message):
        pi(state, torch.zeros((), dtype=torch.float64), **{**PI, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: at least 1 needed, got 0"),
        ({"window": 0}, "window: at least 1 needed, got 0"),
        ({"smoothing": 1.0}, r"smoothing: expected a number in \[0, 1\), got 1.0"),
        ({"smoothing": math.nan}, "smoothing: expected"),
        ({"compared": "none"}, "compared: expected .*, got 'none'"),
        ({"tie": "none"}, "tie: expected .*, got 'none'"),
    ],
)
def test_adaptive_capacity_names_what_cannot_be(change, message):
    state = initial_control("cpu", beta=1.0, capacity=0.5)
    with pytest.raises(ValueError, match=message):
        adapt_capacity(state, torch.zeros((), dtype=torch.int64), **{**ADAPTIVE, **change})


def test_the_published_runs():
    """Those of the paper's code: network, optimiser, gains, and its own anti-windup; the arms differ in C alone."""
    linear = RECIPES["control-vae-linear"][1]
    assert (linear.architecture, linear.batch_size, linear.lr, linear.steps) == (
        "beta-vae-h",
        64,
        1e-4,
        1_500_000,
    )
    setting = linear.objective
    assert setting == ControlVAE(
        capacity=16.0,
        schedule="stepwise",
        capacity_start=0.5,
        capacity_increment=0.15,
        capacity_period=5000,
        kp=0.01,
        ki=0.001,
        beta_min=1.0,
        beta_max=None,
        initial_beta=1.0,
        anti_windup="published",
    )
    assert RECIPES["control-vae"][1] == replace(linear, objective=replace(setting, capacity=18.0))
    adaptive = replace(setting, schedule="adaptive", capacity_steps=1_500_000)
    assert RECIPES["control-vae-adaptive"][1] == replace(linear, objective=adaptive)


def test_a_recipe_survives_its_file():
    recipe = Recipe(objective=ControlVAE(schedule="adaptive", beta_max=3.0))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
