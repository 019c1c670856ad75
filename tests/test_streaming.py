"""Streamed metrics are those of all codes at once."""

import math
import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pyvae.metrics import METRICS, CodeTable, StreamedMetrics, evaluate
from pyvae.metrics.registry import OF_GRID, reads_variances

SIZES, NAMES = (3, 4, 5), ("shape", "row", "column")
SPLIT = {"train": 40, "test": 20}
OPTIONS = {
    "mig": {"points": None},
    "mig-chen": {},
    "factor-vae": {"variance_points": None, "votes": 200, "evaluation_votes": 50, "points_per_vote": 8},
    "beta-vae": {"train": 100, "evaluation": 50, "pairs": 4},
    "dci": {**SPLIT, "classifier": LogisticRegression, "progress": False},
    "sap": SPLIT,
    "modularity": {"points": None},
    "explicitness": SPLIT,
    "irs": {"points": None},
    "unsupervised": {"points": None},
    "total-correlation": {"samples": 200, "progress": False},
}
OF_ALL = tuple(set(METRICS) - OF_GRID)
QUICK = ("mig", "modularity", "irs", "unsupervised")
GRID = torch.cartesian_prod(*(torch.arange(n) for n in SIZES))


def codes(classes=GRID, seed=0):
    g = torch.Generator().manual_seed(seed)
    rows = len(classes)
    mu = torch.cat([classes.float(), torch.randn(rows, 1, generator=g)], 1)
    return classes, mu + 0.1 * torch.randn(rows, 4, generator=g), torch.randn(rows, 4, generator=g) - 3


def streamed(names, **options):
    return StreamedMetrics(names, SIZES, NAMES, seed=3, options={n: OPTIONS[n] for n in names}, **options)


def at_once(names, mu, logvar, classes=None):
    table = CodeTable(mu, logvar, NAMES, SIZES, classes)
    return evaluate(table, names, seed=3, options={name: OPTIONS[name] for name in names})


@pytest.mark.parametrize("name", METRICS)
def test_the_grid_in_batches_of_any_order_is_the_whole_table(name):
    classes, mu, logvar = codes()
    expected = at_once([name], mu, logvar)
    metric = streamed([name])
    for batch in torch.randperm(60, generator=torch.Generator().manual_seed(1)).split(9):
        metric.update(mu[batch][..., None, None], classes[batch].int(), logvar[batch])
    assert metric.compute() == expected
    assert metric.compute() == expected
    metric.reset()
    with pytest.raises(ValueError, match="no codes yet"):
        metric.compute()


def test_every_code_that_was_fed_counts():
    """Many images of each combination, of codes that differ: none is thrown away."""
    classes, mu, logvar = codes(GRID.repeat(9, 1))
    metric = streamed(OF_ALL)
    for batch in torch.arange(540).split(70):
        metric.update(mu[batch], classes[batch], logvar[batch])
    assert metric.compute() == at_once(OF_ALL, mu, logvar, classes)


def test_one_factor_of_many_images():
    labels = torch.randint(10, (3000, 1), generator=torch.Generator().manual_seed(2))
    z = torch.randn(3000, 3, generator=torch.Generator().manual_seed(3)) + 4 * labels * torch.tensor(
        [1, 0, 0]
    )
    metric = StreamedMetrics(["mig"], (10,), ["digit"], options={"mig": {"points": None}})
    for a, b in zip(z.split(500), labels.split(500), strict=True):
        metric.update(a, b)
    # a latent that tells the digits apart but for neighbours, and two that tell nothing
    assert 0.8 < metric.compute()["mig"]["score"] < 0.95
    table = CodeTable(z, torch.zeros_like(z), ("digit",), (10,), labels)
    assert metric.compute() == evaluate(table, ["mig"], options={"mig": {"points": None}})


def test_an_epoch_without_reset_is_added_to_the_next():
    classes, mu, _logvar = codes()
    later = codes(seed=1)[1]
    metric = streamed(QUICK)
    metric.update(mu, classes)
    metric.update(later, classes)
    both = torch.cat([mu, later])
    assert metric.compute() == at_once(QUICK, both, torch.zeros_like(both), classes.repeat(2, 1))


def test_rows_that_come_again_count_once_with_their_newest_code():
    classes, mu, logvar = codes()
    later, later_variance = codes(seed=1)[1:]
    metric = streamed(METRICS)
    rows = torch.arange(60)
    for m, lv in ((mu, logvar), (later, later_variance)):
        # as a distributed sampler does, which fills the last batch
        for batch in torch.cat([rows, rows[:4]]).split(16):
            metric.update(m[batch], classes[batch], lv[batch], rows=batch.int())
    assert metric.compute() == at_once(METRICS, later, later_variance)


def test_rows_make_the_order_of_batches_no_matter():
    classes, mu, logvar = codes(GRID.repeat(2, 1))
    options = {"mig": {"points": 50}, "sap": SPLIT}
    expected = evaluate(CodeTable(mu, logvar, NAMES, SIZES, classes), options, seed=3, options=options)
    metric = StreamedMetrics(options, SIZES, NAMES, seed=3, options=options)
    for batch in torch.randperm(120, generator=torch.Generator().manual_seed(1)).split(50):
        metric.update(mu[batch], classes[batch], rows=batch)
    assert metric.compute() == expected


@pytest.mark.parametrize("name", sorted(OF_GRID))
def test_repeated_images_are_one_for_what_needs_the_grid(name):
    """Encoded in another batch, the code of an image differs in its last bits."""
    classes, mu, logvar = codes()
    metric = streamed([name, "mig"])
    again = torch.tensor([7, 7, 59, 0])
    metric.update(mu, classes, logvar)
    metric.update(mu[again] * (1 + 1e-4), classes[again], logvar[again] * (1 - 1e-4))
    found = metric.compute()
    assert found[name] == at_once([name], mu, logvar)[name]
    every = torch.cat([mu, mu[again] * (1 + 1e-4)])
    expected = at_once(["mig"], every, torch.zeros_like(every), torch.cat([classes, classes[again]]))
    assert found["mig"] == expected["mig"]


@pytest.mark.parametrize("name", sorted(OF_GRID))
def test_several_codes_of_a_combination_are_not_thrown_away_in_silence(name):
    classes, mu, logvar = codes()
    for part in (classes, classes[:10]):
        metric = streamed([name])
        metric.update(mu, classes, logvar)
        metric.update(mu[: len(part)] + 0.5, part, logvar[: len(part)])
        with pytest.raises(
            ValueError, match=f"{name} needs one code .*, and {len(part)} came with several"
        ) as e:
            metric.compute()
        assert "\n" not in str(e.value)


def test_a_grid_with_gaps_is_not_yet_a_score():
    classes, mu, logvar = codes()
    metric = streamed([*sorted(OF_GRID), "mig"])
    metric.update(mu[:50], classes[:50], logvar[:50])
    with pytest.warns(UserWarning, match="not yet") as warned:
        found = metric.compute()
    assert found["mig"] == at_once(["mig"], mu[:50], logvar[:50], classes[:50])["mig"]
    assert len(warned) == len(OF_GRID)
    for name in OF_GRID:
        assert math.isnan(found[name]["score"])
        assert found[name]["reason"] == (
            f"{name} intervenes on factors: it needs the codes of the full grid, and 10 of its 60 combinations of "
            "classes have not come"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute()["mig"] == found["mig"]
        metric.update(mu[50:], classes[50:], logvar[50:])
        assert metric.compute() == at_once([*sorted(OF_GRID), "mig"], mu, logvar)


def test_fewer_codes_than_asked_for_are_fewer_points():
    classes, mu, logvar = codes(GRID.repeat(3, 1))
    defaults = {name: {} for name in (*QUICK, "sap", "explicitness")}
    metric = StreamedMetrics(defaults, SIZES, NAMES)
    metric.update(mu, classes, logvar)
    with pytest.warns(UserWarning, match="of 180 codes, fewer than it takes") as warned:
        found = metric.compute()
    assert len(warned) == len(defaults)
    fewer = {
        **{n: {"points": None} for n in QUICK},
        **{key: {"train": 120, "test": 60} for key in ("sap", "explicitness")},
    }
    assert found == evaluate(CodeTable(mu, logvar, NAMES, SIZES, classes), defaults, options=fewer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric.compute() == found


def test_two_batches_of_one_class_are_not_yet_enough():
    classes, mu, logvar = codes()
    metric = StreamedMetrics(METRICS, SIZES, NAMES, options={"dci": OPTIONS["dci"]})
    metric.update(mu[:1], classes[:1], logvar[:1])
    with pytest.warns(UserWarning, match="not yet"):
        found = metric.compute()
    assert all("reason" in found[name] for name in METRICS)
    metric.update(mu[1:5], classes[1:5], logvar[1:5])
    found = metric.compute()
    assert (
        found["mig"]["reason"]
        == "factor shape has one class among the points: leave it out with without='shape'"
    )
    assert "reason" not in found["unsupervised"]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("pruning", ["std", "kl"])
def test_log_variances_are_asked_for_where_they_are_read(name, pruning):
    options = {**OPTIONS[name], **({"prune": pruning, "threshold": 0.01} if name == "factor-vae" else {})}
    classes, mu, logvar = codes()
    mu = mu * 0.03
    scores = [
        evaluate(CodeTable(mu, lv, NAMES, SIZES), [name], options={name: options})
        for lv in (logvar, torch.zeros_like(mu) - torch.tensor([0.0, 1, 2, 9]))
    ]
    read = scores[0] != scores[1]
    expected = name in ("mig-chen", "total-correlation") or "kl" in options.values()
    assert read == reads_variances(name, options) == expected
    metric = StreamedMetrics([name], SIZES, NAMES, options={name: options})
    if read:
        with pytest.raises(ValueError, match=f"logvar: {name} cannot do without"):
            metric.update(mu, classes)
    else:
        metric.update(mu, classes)
        metric.update(mu, classes, logvar)


def test_a_loop_may_write_into_its_tensors_again():
    classes, mu, logvar = codes()
    expected = at_once(QUICK, mu, logvar)
    metric = streamed(QUICK)
    buffer, labels = mu.clone(), classes.clone()
    metric.update(buffer, labels)
    buffer.zero_()
    labels.zero_()
    assert metric.compute() == expected


def good():
    classes, mu, logvar = codes()
    return {"mu": mu, "factors": classes, "logvar": logvar, "rows": torch.arange(60)}


def put(x, value):
    x = x.clone()
    x[7, 1] = value
    return x


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"factors": GRID.float()},
            TypeError,
            r"factors: expected integers, got torch.float32: these are classes",
        ),
        ({"factors": GRID.double() / 5}, TypeError, r"factors: expected integers, got torch.float64"),
        ({"factors": GRID.numpy()}, TypeError, "factors: expected a tensor, got ndarray"),
        ({"factors": GRID[:, :2]}, ValueError, r"factors: expected shape \[60, 3\], got \[60, 2\]"),
        ({"factors": GRID[:, 0]}, ValueError, r"factors: expected shape \[60, 3\], got \[60\]"),
        ({"factors": GRID.T}, ValueError, r"factors: expected shape \[60, 3\], got \[3, 60\]"),
        ({"factors": GRID[:59]}, ValueError, r"factors: expected shape \[60, 3\], got \[59, 3\]"),
        ({"factors": GRID + 1}, ValueError, r"a class of shape is not in \[0, 3\)"),
        ({"factors": GRID - 1}, ValueError, r"a class of shape is not in \[0, 3\)"),
        ({"mu": GRID}, TypeError, "mu: expected float32, bfloat16, float16 or float64, got torch.int64"),
        ({"mu": [[0.0]]}, TypeError, "mu: expected a tensor, got list"),
        ({"mu": torch.zeros(60)}, ValueError, r"mu: expected shape \[B, D\] or \[B, D, 1, 1\], got \[60\]"),
        ({"mu": torch.zeros(60, 4, 2, 2)}, ValueError, r"mu: expected shape .* got \[60, 4, 2, 2\]"),
        ({"mu": torch.zeros(60, 1, 4)}, ValueError, r"mu: expected shape .* got \[60, 1, 4\]"),
        ({"mu": torch.zeros(60, 0)}, ValueError, r"mu: expected shape .* got \[60, 0\]"),
        ({"mu": put(torch.zeros(60, 4), math.nan)}, ValueError, "mu: latent 1 holds NaN or infinity"),
        (
            {"mu": torch.full((60, 4), 1e60, dtype=torch.float64)},
            ValueError,
            "mu: latent 0 holds NaN or infinity",
        ),
        (
            {"mu": torch.zeros(60, 3)},
            ValueError,
            r"logvar: expected the shape of mu \[60, 3\], got \[60, 4\]",
        ),
        (
            {"logvar": torch.zeros(4, 60)},
            ValueError,
            r"logvar: expected the shape of mu \[60, 4\], got \[4, 60\]",
        ),
        ({"logvar": torch.zeros(60, 2, 2)}, ValueError, "logvar: expected shape"),
        ({"logvar": torch.zeros(240)}, ValueError, "logvar: expected shape"),
        ({"logvar": torch.zeros(60, 4).long()}, TypeError, "logvar: expected float32"),
        ({"logvar": put(torch.zeros(60, 4), math.inf)}, ValueError, "logvar: latent 1 holds NaN or infinity"),
        ({"logvar": None}, ValueError, "logvar: mig-chen cannot do without"),
        ({"rows": torch.arange(60).float()}, TypeError, "rows: expected integers, got torch.float32"),
        ({"rows": torch.arange(59)}, ValueError, r"rows: expected shape \[60\], got \[59\]"),
        ({"rows": torch.arange(60)[:, None]}, ValueError, r"rows: expected shape \[60\], got \[60, 1\]"),
        ({"rows": list(range(60))}, TypeError, "rows: expected a tensor, got list"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_kept(change, error, message):
    metric = streamed(["mig", "mig-chen"])
    with pytest.raises(error, match=message) as raised:
        metric.update(**{**good(), **change})
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="no codes yet"):
        metric.compute()
    metric.update(**good())
    assert metric.compute() == at_once(["mig", "mig-chen"], good()["mu"], good()["logvar"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool])
def test_classes_of_any_integer_dtype(dtype):
    classes = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(20, 1)
    mu = torch.randn(80, 2, generator=torch.Generator().manual_seed(0)) + classes
    metric = StreamedMetrics(["mig"], (2, 2), options={"mig": {"points": None}})
    metric.update(mu.double(), classes.to(dtype))
    table = CodeTable(mu, torch.zeros_like(mu), ("factor0", "factor1"), (2, 2), classes)
    assert metric.compute() == evaluate(table, ["mig"], options={"mig": {"points": None}})


def test_batches_fit_one_another():
    classes, mu, _logvar = codes()
    metric = streamed(["mig"])
    metric.update(mu, classes)
    with pytest.raises(ValueError, match="3 latents after batches of 4"):
        metric.update(mu[:, :3], classes)
    with pytest.raises(ValueError, match="rows: given with some batches and not with others"):
        metric.update(mu, classes, rows=torch.arange(60))
    metric.reset()
    metric.update(mu, classes, rows=torch.arange(60))
    with pytest.raises(ValueError, match="rows: given with some batches and not with others"):
        metric.update(mu, classes)
    metric.update(mu[:0], classes[:0], rows=torch.arange(0))
    metric.update(mu[:1], classes[5:6], rows=torch.tensor([0]))
    with pytest.raises(ValueError, match="rows: row 0 came with two combinations of factor classes"):
        metric.compute()


def test_what_can_never_be_is_refused_at_once():
    classes, mu, _logvar = codes()
    with pytest.raises(ValueError, match="unknown metric 'x'"):
        StreamedMetrics(["x"], SIZES)
    with pytest.raises(ValueError, match="does not fit the names"):
        StreamedMetrics(["mig"], SIZES, NAMES[:2])
    with pytest.raises(ValueError, match="a name stands twice"):
        StreamedMetrics(["mig"], SIZES, ("a", "b", "a"))
    with pytest.raises(ValueError, match="factor_sizes: give the number"):
        StreamedMetrics(["mig"], ())
    for sizes, error in (((3, 0), ValueError), ((3, 2.5), TypeError)):
        with pytest.raises(error, match="factor_sizes: "):
            StreamedMetrics(["mig"], sizes)
    for options, message in (
        ({"without": ("hue",)}, "no factor 'hue'"),
        ({"bins": 0}, "bins: at least 1"),
        ({"points": 1}, "points: at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            StreamedMetrics(["mig"], SIZES, options={"mig": options})
    with pytest.raises(TypeError, match="mig has no option 'bin'"):
        StreamedMetrics(["mig"], SIZES, options={"mig": {"bin": 5}})
    metric = streamed(["mig", "irs"])
    with pytest.raises(ValueError, match="mig compares latents: it needs at least 2, got 1"):
        metric.update(mu[:, :1], classes)


def test_processes_compute_from_the_codes_of_all(monkeypatch):
    """A real group is in test_dropin; here, who has which batches, and which of two codes is the newest."""
    classes, mu, logvar = codes()
    later = codes(seed=1)[1]
    # 62 places for 60 images: the sampler repeats the first two; and two epochs without reset
    index = torch.cat([torch.arange(60), torch.tensor([0, 1])])
    processes = []
    for rank in (0, 1):
        with_rows, plain = streamed(["mig", "beta-vae"]), streamed(["mig"])
        # the later epoch deals the images out the other way round
        for m, first in ((mu, rank), (later, 1 - rank)):
            for batch in index[first::2].split(7):
                with_rows.update(m[batch], classes[batch], rows=batch)
                plain.update(m[batch], classes[batch])
        processes.append((with_rows, plain))

    def gather(found, own, of):
        assert own is of[1]._batches
        found[:] = [metric._batches for metric in of]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    every = torch.cat([m[index] for m in (mu, later)])
    for kind, expected in (
        (0, at_once(["mig", "beta-vae"], later, logvar)),
        # the order of the rows does not matter to a histogram
        (1, at_once(["mig"], every, torch.zeros_like(every), classes[index].repeat(2, 1))),
    ):
        metrics = [of_process[kind] for of_process in processes]
        monkeypatch.setattr(
            torch.distributed, "all_gather_object", lambda found, own, m=metrics: gather(found, own, m)
        )
        assert metrics[1].compute() == expected


def test_processes_agree_on_rows(monkeypatch):
    classes, mu, _ = codes()
    ours, theirs = streamed(["mig"]), streamed(["mig"])
    ours.update(mu, classes, rows=torch.arange(60))
    theirs.update(mu, classes)

    def gather(found, own):
        found[:] = [own, theirs._batches]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with pytest.raises(ValueError, match="rows: given with some batches and not with others"):
        ours.compute()


@pytest.mark.parametrize("name", METRICS)
def test_lightning_checks_its_loop_before_there_are_codes_enough(name, recwarn):
    """Two batches, compute, reset; then a whole epoch: what Lightning does, without it."""
    classes, mu, logvar = codes()
    metric = streamed([name])
    for batches in (torch.arange(60).split(6)[:2], torch.arange(60).split(6)):
        for batch in batches:
            metric.update(mu[batch], classes[batch], logvar[batch])
        found = metric.compute()[name]
        assert isinstance(found.get("score", 0.0), float)
        metric.reset()
    assert found == at_once([name], mu, logvar)[name]


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_fit_of_lightning(sanity, tmp_path):
    lightning = pytest.importorskip("lightning")
    classes, mu, logvar = codes()
    seen = []

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.metrics = StreamedMetrics(
                ["mig", "factor-vae"], SIZES, NAMES, seed=3, options={"factor-vae": OPTIONS["factor-vae"]}
            )

        def training_step(self, batch, _):
            return self.layer(batch[0]).square().mean()

        def validation_step(self, batch, _):
            self.metrics.update(batch[0], batch[1])

        def on_validation_epoch_end(self):
            found = self.metrics.compute()
            for name, result in found.items():
                self.log(name, result["score"])
            seen.append(found)
            self.metrics.reset()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(mu, classes), 16)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", num_sanity_val_steps=sanity, default_root_dir=tmp_path, **quiet
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Net(), loader, loader)
    assert len(seen) == 2 + bool(sanity)
    for found in seen[-2:]:
        assert found == at_once(["mig", "factor-vae"], mu, logvar)
    assert math.isnan(seen[0]["factor-vae"]["score"]) == bool(sanity)


def test_a_collapsed_encoder_whose_sampler_repeats_images():
    """What is left of the spread is rounding, of bfloat16 too."""
    classes = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    for mean, noise in ((0.3, 3e-8), (3.0, 4e-3)):
        codes = torch.full((20, 3), mean)
        metrics = StreamedMetrics(["factor-vae"], (4, 5), options={"factor-vae": OPTIONS["factor-vae"]})
        metrics.update(codes, classes)
        metrics.update(codes[:4] + noise, classes[:4])
        assert "reason" not in metrics.compute()["factor-vae"]


def test_a_metric_that_cannot_be_does_not_cost_the_others():
    codes = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    metrics = StreamedMetrics(["mig", "beta-vae"], (4, 5), options={"mig": {"points": None}})
    metrics.update(codes.float(), codes)
    metrics.update(-codes.float(), codes)
    with pytest.warns(
        UserWarning, match="beta-vae, not computed: beta-vae needs one code of each combination"
    ):
        results = metrics.compute()
    assert results["mig"]["score"] > 0.1
    assert math.isnan(results["beta-vae"]["score"])
    assert "came with several that differ" in results["beta-vae"]["reason"]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_what_is_not_yet_has_every_number_of_the_metric(name):
    """So that a loop may log any of them in Lightning's sanity check."""
    sizes = (4, 5)
    classes = torch.cartesian_prod(*map(torch.arange, sizes))
    whole = StreamedMetrics([name], sizes, options={name: OPTIONS.get(name, {})})
    early = StreamedMetrics([name], sizes, options={name: OPTIONS.get(name, {})})
    codes = classes.float() + 0.1 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for metrics, rows in ((whole, slice(None)), (early, slice(1))):
        metrics.update(codes[rows], classes[rows], torch.zeros_like(codes[rows]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, missing = whole.compute()[name], early.compute()[name]
    assert "reason" in missing
    assert {k for k, v in found.items() if isinstance(v, float)} <= missing.keys()
    assert all(math.isnan(v) for k, v in missing.items() if k != "reason")


def test_a_factor_of_one_class_is_refused_before_any_code():
    for name in ("mig", "sap", "dci", "explicitness", "mig-chen", "factor-vae"):
        with pytest.raises(ValueError, match="factor factor0 has one class: leave it out"):
            StreamedMetrics([name], (1, 5))


def test_sizes_may_be_an_array():
    assert StreamedMetrics(["mig"], torch.tensor([2, 3])).factor_sizes == (2, 3)
