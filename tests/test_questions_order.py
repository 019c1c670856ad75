"""In which order factors enter: what is measured of a run, and how it becomes tables and pictures."""

import json

import pytest
import torch

import pyvae
from pyvae.evaluation.averages import correlation_ratio, evaluate
from pyvae.metrics import CodeTable
from pyvae.studies.plan import read_plan
from scripts import ROOT, module, page_of, scripts  # noqa: F401
from sprites_tiny import GRID, use_tiny_sprites

NAMES = ("shape", "scale", "orientation", "posX", "posY")
SIZES = (3, 6, 4, 5, 5)


@pytest.fixture
def run(monkeypatch, tmp_path):
    use_tiny_sprites(monkeypatch, tmp_path / "cache")
    options = {"gamma": 100.0, "capacity_steps": 30, "steps": 30, "keep_at": (10, 20), "batch_size": 16}
    path = tmp_path / "study/gamma-100/seed-3"
    return pyvae.train("capacity-vae", out=path, seed=3, device="cpu", log_every=1, **options)


def grid(*columns):
    """A table of the full grid with these codes."""
    mu = torch.stack([column.float() for column in columns], -1)
    return CodeTable(mu, torch.zeros_like(mu), NAMES, SIZES)


CLASSES = torch.cartesian_prod(*map(torch.arange, SIZES))
SHAPE, SCALE, TURN, X, Y = (column.double() for column in CLASSES.unbind(-1))


def test_total_effects_are_those_of_closed_forms():
    effects = module("questions.effects").grid_effects
    # 5 classes have variance 2 and 6 have 35/12
    found = effects(grid(2 * X + Y, SCALE, (SHAPE - 1) * (X - 2), torch.zeros_like(X)))
    expected = torch.tensor(
        [[0, 0, 0, 0.8, 0.2], [0, 1, 0, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_turn_that_differs_with_the_shape_is_seen():
    """A square is the same after a quarter of a turn: what it does to a code is not what a heart's does."""
    turned = torch.where(SHAPE == 0, (TURN % 2) - 0.5, torch.where(SHAPE == 1, 0.5 - (TURN % 2), 0.0))
    assert float(module("questions.effects").grid_effects(grid(turned))[0, 2]) == pytest.approx(1)
    assert float(correlation_ratio(turned.float().unsqueeze(-1), CLASSES)[0, 2]) == pytest.approx(0, abs=1e-6)


def test_effects_of_siblings_are_those_of_the_grid(monkeypatch, tmp_path):
    data = use_tiny_sprites(monkeypatch, tmp_path)
    classes = data.factor_classes(torch.arange(len(data))).double()
    codes = torch.stack([classes[:, 3] + 0.5 * classes[:, 4], classes[:, 0] * classes[:, 2]], -1).float()
    found = module("questions.effects")
    groups = [found.siblings(data, factor, 4000) for factor in range(5)]
    for factor, index in enumerate(groups):
        own = data.factor_classes(index)
        assert torch.equal(own[..., factor], torch.arange(GRID[factor]).expand(4000, -1))
        others = [k for k in range(5) if k != factor]
        assert torch.equal(own[..., others], own[:, :1, others].expand(-1, GRID[factor], -1))
    effects = found.total_effects([codes[index] for index in groups])
    exact = module("questions.effects").grid_effects(CodeTable(codes, torch.zeros_like(codes), NAMES, GRID))
    torch.testing.assert_close(effects, exact, rtol=0, atol=0.03)


def test_nats_are_shared_out_as_effects_are():
    tables = module("questions.order_tables")
    snapshot = {
        "kl": [2.0, 1.0, 0.5, 4.0],
        "effect": [[0.5, 0.5, 0, 0, 0], [0, 0, 3, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]],
        "std": [1.0, 0.05, 0.05, 0.001],
    }
    # of a latent that nothing moves, or hardly, nothing is shared out
    assert tables.spent(snapshot).tolist() == [1.0, 1.0, 0.75, 0.25, 0.0]


def test_the_first_capacity_lies_between_snapshots():
    first = module("questions.order_tables").first_capacity
    result = {"snapshots": [{"capacity": c} for c in (1.0, 2.0, 4.0)]}
    assert first(result, [0.0, 0.25, 0.75]) == pytest.approx(3.0)
    assert first(result, [1.0, 1.0, 1.0]) == pytest.approx(0.5)
    assert first(result, [0.0, 0.0, 0.49]) is None


def test_a_latent_of_two_factors_bears_both_names():
    followed = module("questions.order_tables").followed
    effect = [[0.0, 0.0, 0.0, 0.7, 0.36], [0.2, 0.8, 0.1, 0.0, 0.0]]
    result = {"factors": NAMES, "snapshots": [{"effect": effect}]}
    assert followed(result, 0) == ["posX", "posY"]
    assert followed(result, 1) == ["scale"]


def test_labels_stand_apart_and_move_little():
    apart = module("questions.labels").apart
    assert apart([0.0, 1.0, 5.0], 1.0) == [0.0, 1.0, 5.0]
    assert apart([1.0, 1.0, 1.0, 9.0], 1.0) == pytest.approx([0.0, 1.0, 2.0, 9.0])
    assert apart([0.0, 0.1, 1.0], 1.0) == pytest.approx([-0.63333, 0.36667, 1.36667], abs=1e-4)


def test_thumbnails_come_back():
    thumbnails = module("questions.thumbnails")
    images = torch.rand(2, 3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    images[1, 2] = 1.0
    back = thumbnails.unpack(json.loads(json.dumps(thumbnails.pack(images))))
    small = images.unflatten(-1, (32, 2)).unflatten(-3, (32, 2)).mean((-1, -3))
    assert back.shape == (2, 3, 1, 32, 32)
    torch.testing.assert_close(back, small, rtol=0, atol=0.5 / 15 + 1e-6)


def test_a_run_becomes_a_file_tables_and_pictures(run, monkeypatch, tmp_path):
    findings = module("findings")
    results, pages = tmp_path / "results", tmp_path / "pages"
    (path,) = findings.measure("order", run.path.parents[1], results)
    assert path == results / "order/gamma-100-seed-3.json"
    assert findings.measure("order", run.path.parents[1], results) == []
    (result,) = findings.read("order", results)
    assert [(each["step"], each["capacity"]) for each in result["snapshots"]] == [
        (10, pytest.approx(25 / 3)),
        (20, pytest.approx(50 / 3)),
        (30, 25.0),
    ]
    own = evaluate(run.model(20).net, run.dataset)
    assert result["snapshots"][1]["kl"] == pytest.approx(own.kl, rel=1e-3, abs=1e-6)
    assert result["snapshots"][1]["recon"] == pytest.approx(own.recon, rel=1e-3)
    assert [each["step"] for each in result["traversals"]] == [10, 10, 20, 30]
    assert result["trace"]["capacity"][3] == pytest.approx(2.5)

    pages.mkdir()
    (pages / "order.md").write_text(page_of("order"))
    # of the other questions there are no results here
    findings.draw(results, pages)
    page = (pages / "order.md").read_text()
    assert "| `gamma-100` | 3 | 100 | 30 |" in page
    assert "Trained on: " in page
    pictures = sorted(each.name for each in pages.glob("*.png"))
    assert pictures == [
        "order-kl.png",
        "order-recon.png",
        "order-spent.png",
        "order-traversals-gamma-100.png",
    ]
    assert all((pages / name).stat().st_size > 5_000 for name in pictures)


def test_a_run_that_ends_early_is_drawn_as_far_as_it_went(monkeypatch, tmp_path):
    use_tiny_sprites(monkeypatch, tmp_path / "cache")
    out = tmp_path / "study/gamma-1000/seed-0"
    options = {"capacity_steps": 30, "steps": 10, "keep_at": (5,), "batch_size": 16}
    pyvae.train("capacity-vae", out=out, seed=0, device="cpu", log_every=1, **options)
    findings = module("findings")
    findings.measure("order", out.parents[1], tmp_path)
    (result,) = findings.read("order", tmp_path)
    assert [(each["published"], each["step"]) for each in result["traversals"]] == [(3.1, 5), (7.3, 10)]
    pages = tmp_path / "pages"
    pages.mkdir()
    findings.draw(tmp_path, pages)
    assert (pages / "order-traversals-gamma-1000.png").is_file()


def test_tables_without_a_run_say_so():
    question = module("questions.order").QUESTION
    assert {table([]) for table in question.tables.values()} == {"No run has been measured yet."}


def test_the_study_has_the_arms_of_the_question():
    plan = read_plan(ROOT / "examples/studies/findings/order.toml")
    assert (
        tuple(dict.fromkeys(model.method for model in plan.models)) == module("questions.order").QUESTION.arms
    )
    trained, slow, collapsed, kaiming, given = (model.recipe for model in plan.models[::2])
    assert (slow.lr, collapsed.objective.gamma, kaiming.objective.gamma) == (1e-4, 1000, 1000)
    assert [each.init for each in (trained, slow, collapsed, kaiming)] == [
        "torch",
        "torch",
        "torch",
        "kaiming",
    ]
    assert (given.code, trained.code) == ("factors", "encoder")
    assert given.objective == trained.objective
    assert trained.objective.capacity_steps == trained.steps
