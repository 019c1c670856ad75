"""Curves of a page: what is drawn, and what a script may read off."""

import json
import math
import re
import warnings

import numpy as np
import pytest

from pyvae.report.charts import Scale, charts, show, thinned, ticks
from pyvae.report.figures import draw_trace
from pyvae.report.panels import Line, Panel, panels_of, shared_panels, smooth


def trace_of(rows, latents=10, **columns):
    rng, step = np.random.default_rng(0), np.arange(rows) * 100
    far = max(int(step[-1]), 1)
    found = {
        "step": step,
        "loss": rng.normal(size=rows),
        "recon": 20 + 2000 * np.exp(-step / far * 9) + rng.normal(size=rows),
        "kl": 20 + rng.normal(size=rows),
        "beta": np.ones(rows),
        "capacity": np.linspace(0, 25, rows),
    }
    return found | {f"kl_{j}": rng.random(rows) for j in range(latents)} | columns


def read(page):
    """Titles of panels, their SVG paths, and what the script reads."""
    data = json.loads(
        re.search(r'<script type="application/json">(.*?)</script>', page)[1], parse_constant=pytest.fail
    )
    titles = re.findall(r"<figcaption><span>([^<]*)</span>", page)
    drawn = [
        re.findall(r'<path class="line [^"]*"[^>]* d="([^"]*)"', part) for part in page.split("<figure")[1:]
    ]
    assert len(titles) == len(drawn) == len(data["panels"])
    return titles, drawn, data


def places(path):
    return [tuple(map(float, point.split())) for point in re.split("[ML]", path) if point]


def test_what_is_drawn_is_what_a_script_reads():
    trace = trace_of(200)
    titles, drawn, data = read(charts(panels_of(trace), "words"))
    assert titles == [panel.title for panel in panels_of(trace)]
    assert [panel["axis"] for panel in data["panels"]] == ["step"] * 4 + ["C, nats"]
    for paths, about in zip(drawn, data["panels"], strict=True):
        x, y = Scale(*about["x"]), Scale(*about["y"])
        for path, line in zip(paths, about["lines"], strict=True):
            grid = data["grids"][line["x"]]
            expected = np.stack([x(np.array(grid)), y(np.array(line["y"]))], 1)
            np.testing.assert_allclose(places(path), expected, atol=0.07)
    recon = data["panels"][0]
    assert recon["y"][4] is True
    assert recon["y"][0] <= trace["recon"].min() < trace["recon"].max() <= recon["y"][1]
    np.testing.assert_allclose(recon["lines"][1]["y"], smooth(trace["recon"]), rtol=1e-4)


def test_a_long_trace_is_thinned_and_keeps_its_spikes():
    rows = 15_000
    values = np.random.default_rng(0).normal(size=rows)
    values[[1234, 9876]] = 50, -50
    step = np.arange(rows)
    faint, mean = (thinned(Line("", step, values, style)) for style in ("faint", "mean"))
    assert len(faint.x) <= 600
    assert set(faint.x) >= {1234, 9876}
    assert (np.diff(faint.x) > 0).all()
    np.testing.assert_array_equal(faint.y, values[faint.x])
    assert len(mean.x) <= 300
    assert (mean.x[0], mean.x[-1]) == (0, rows - 1)
    page = charts(panels_of(trace_of(rows)), "words")
    assert len(page) < 250_000


def test_what_is_not_finite_is_a_gap_and_breaks_nothing():
    trace = trace_of(100, latents=2)
    trace["recon"][10:14] = math.nan
    trace["kl"][50] = math.inf
    trace["kl_0"][:] = math.nan
    trace["beta"] = np.where(np.arange(100) % 7, 2.0, math.nan)
    page = charts(panels_of(trace), "words")
    assert "nan" not in page.lower().replace("&nan", "")
    assert "Infinity" not in page
    titles, drawn, data = read(page)
    assert data["panels"][0]["lines"][0]["y"][10:14] == [None] * 4
    assert drawn[0][0].count("M") == 2
    assert drawn[2][0] == ""  # a latent of which nothing is known
    assert "weight of the KL in the gradient" not in titles  # it does not vary where it is known
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_trace(trace)
    np.testing.assert_allclose(smooth(np.array([1.0, math.nan, 3.0])), [1.0, 2.0, 3.0])
    long = trace_of(5000)
    long["kl"][2000:2400] = math.nan
    assert data is not None
    assert read(charts(panels_of(long), ""))[1][1][0].count("M") == 2


@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_are_points(rows):
    page = charts(panels_of(trace_of(rows, latents=2) | {"step": np.arange(rows)}), "words")
    assert page.count("<circle") >= 3 * rows
    read(page)


def test_names_are_text():
    name = '</script><b>"'
    page = charts([Panel(name, [Line(name, np.arange(3), np.arange(3.0))], name)], name)
    assert "<b>&quot;" not in page
    assert page.count("</script>") == 1


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1000, False, [0, 200, 400, 600, 800, 1000]),
        (-0.05, 0.05, False, [-0.04, -0.02, 0.0, 0.02, 0.04]),
        (8, 2500, True, [10, 30, 100, 300, 1000]),
        (0.5, 3e6, True, [1, 100, 1e4, 1e6]),
        (90, 450, True, [100, 200, 300, 400]),
        (110, 190, True, [120, 140, 160, 180]),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    assert ticks(Scale(low, high, 0, 1, log)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1234.0, "1234"),
        (12_345.0, "12.35k"),
        (1.5e6, "1.5M"),
        (1.2e35, "1.2e+35"),
        (0.0312345, "0.03123"),
        (math.nan, "–"),
    ],
)
def test_numbers_are_short(value, shown):
    assert show(value) == shown


def test_trainings_share_panels_and_keep_their_colours():
    one = trace_of(200, 2) | {"capacity": np.zeros(200)}
    other = trace_of(30, 3, tc=np.ones(30)) | {"capacity": np.zeros(30), "beta": np.full(30, 4.0)}
    found = {p.title: p for p in shared_panels({"a": one, "lost": None, "b": other})}
    assert list(found) == [
        "reconstruction, nats per image",
        "KL, nats per image",
        "weight of the KL in the gradient",
        "tc, nats",
    ]
    assert [(line.name, line.hue) for line in found["KL, nats per image"].lines] == [("a", 0), ("b", 2)]
    assert [line.name for line in found["tc, nats"].lines] == ["b"]
    np.testing.assert_array_equal(found["KL, nats per image"].lines[0].y, smooth(one["kl"]))
    np.testing.assert_array_equal(found["KL, nats per image"].lines[1].y, other["kl"])
    _, _, data = read(charts(list(found.values()), ""))
    # one abscissa for all, however long each training was
    assert {tuple(panel["x"]) for panel in data["panels"]} == {(0, 19_900, 46, 410, False)}
