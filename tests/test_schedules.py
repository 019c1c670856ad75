import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyvae.schedules import cyclical, geometric, linear, logistic, staged, stepwise

ALL = {
    "linear": lambda step: linear(step, 0.5, 16.0, 1000),
    "geometric": lambda step: geometric(step, 15.0, 0.5, 1000),
    "stepwise": lambda step: stepwise(step, 0.5, 16.0, 0.15, 10),
    "logistic": lambda step: logistic(step, 1000),
    "cyclical": lambda step: cyclical(step, 1000, 4, 0.5),
}


@pytest.mark.parametrize("name", ALL)
def test_each_step_of_many_is_as_alone(name):
    steps = torch.arange(0, 1300, 7)
    together = ALL[name](steps)
    assert together.dtype == torch.float64
    assert together.tolist() == [float(ALL[name](step)) for step in steps]
    assert ALL[name](steps.reshape(2, -1)).shape == (2, 93)


@pytest.mark.parametrize("name", ALL)
def test_nothing_leaves_the_device(name):
    with FakeTensorMode():
        value = ALL[name](torch.zeros((), dtype=torch.int64, device="cuda"))
    assert value.device.type == "cuda"


class TestGeometric:
    def test_equal_times_are_equal_ratios(self):
        values = geometric(torch.tensor([0, 10, 20, 30, 99]), 8.0, 1.0, 30)
        torch.testing.assert_close(values, torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64))

    @pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0)])
    def test_no_ratio_leads_from_or_to_zero(self, start, stop):
        with pytest.raises(ValueError, match="start, stop: expected numbers above 0"):
            geometric(torch.tensor(0), start, stop, 10)


class TestStepwise:
    @pytest.mark.parametrize(("stop", "iteration"), [(16.0, 520_000), (18.0, 585_000)])
    def test_the_published_one_arrives_when_it_did(self, stop, iteration):
        c = stepwise(torch.tensor([iteration - 2, iteration - 1, 1_499_999]), 0.5, stop, 0.15, 5_000)
        assert c[1:].tolist() == [stop, stop]
        assert stop - 0.15 < c[0] < stop

    def test_it_is_the_accumulation_of_the_published_loop(self):
        c, path = 0.5, []
        for iteration in range(1, 1001):
            if iteration % 8 == 0:
                c += 0.15
            path.append(min(c, 16.0))
        mine = stepwise(torch.arange(1000), 0.5, 16.0, 0.15, 8)
        torch.testing.assert_close(mine, torch.tensor(path, dtype=torch.float64), rtol=1e-13, atol=0)

    def test_it_is_exact_past_float32_integers(self):
        step = torch.tensor([2**24, 2**53 // 4])
        assert stepwise(step, 0.5, 1e18, 1.0, 1).tolist() == [2**24 + 1.5, 2**51 + 1.5]


class TestLogistic:
    def test_values(self):
        mine = logistic(torch.tensor([0, 2_500, 5_000, 9_999]), 10_000).tolist()
        expected = [1 / (1 + math.exp(-(t - 5_000) / 1_000)) for t in (0, 2_500, 5_000, 9_999)]
        assert mine == pytest.approx(expected, rel=1e-15)
        assert mine[2] == 0.5
        assert mine[0] == pytest.approx(0.0067, abs=1e-4)
        assert mine[3] == pytest.approx(0.9933, abs=1e-4)

    def test_one_from_its_end_on(self):
        assert logistic(torch.tensor([10_000, 10_001, 10**12]), 10_000).tolist() == [1.0] * 3

    def test_it_rises(self):
        assert (logistic(torch.arange(0, 10_001), 10_000).diff() > 0).all()


class TestCyclical:
    @pytest.mark.parametrize(("cycles", "proportion"), [(4, 0.5), (1, 1.0), (10, 0.25), (3, 0.8)])
    def test_cycles(self, cycles, proportion):
        value = cyclical(torch.arange(120_000), 120_000, cycles, proportion)
        assert value[0] == 0
        assert value.max() <= 1
        assert value.min() >= 0
        assert int((value == 0).sum()) == cycles
        assert int((value.diff() < 0).sum()) == cycles - 1
        assert float(value.mean()) == pytest.approx(1 - proportion / 2, abs=1e-4)

    def test_the_formula(self):
        """With a length that the cycles do not divide: each is rounded up, and counted by the exact one."""
        total, m, r = 1003, 4, 0.5
        for step in range(total):
            tau = ((step + 1 - 1) % math.ceil(total / m)) / (total / m)
            assert float(cyclical(torch.tensor(step), total, m, r)) == (tau / r if tau <= r else 1.0)

    def test_one_after_the_last(self):
        assert cyclical(torch.tensor([400, 401, 10**12]), 400, 4, 0.5).tolist() == [1.0] * 3


@pytest.mark.parametrize("schedule", [linear, None])
def test_long_runs_keep_their_digits(schedule):
    """Steps past 2^24 are no float32 integers."""
    total = 2**26
    step = torch.tensor(2**25 + 1)
    if schedule is linear:
        assert float(linear(step, 0.0, 1.0, total)) == (2**25 + 1) / total
    else:
        assert float(cyclical(step, total, 1, 1.0)) == (2**25 + 1) / total


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda step: linear(step, 0.0, 1.0, 0), "steps: at least 1 needed, got 0"),
        (lambda step: stepwise(step, 0.0, 1.0, 0.1, -3), "period: at least 1 needed, got -3"),
        (lambda step: logistic(step, 0), "steps: at least 1 needed, got 0"),
        (lambda step: cyclical(step, 0, 4, 0.5), "steps: at least 1 needed, got 0"),
        (lambda step: cyclical(step, 100, 0, 0.5), "cycles: at least 1 needed, got 0"),
        (lambda step: cyclical(step, 100, 4, 0.0), r"proportion: expected a number in \(0, 1\], got 0.0"),
        (lambda step: cyclical(step, 100, 4, math.nan), "proportion: expected"),
        (lambda step: staged(step, 0), "first: at least 1 needed, got 0"),
    ],
)
def test_a_length_that_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.tensor(3))
