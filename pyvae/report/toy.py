"""The page of the Gaussian toy: signal-to-noise ratio of gradients against the number of samples."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyvae.engine.files import write_atomically
from pyvae.evaluation.signal_to_noise import Curve
from pyvae.report.figures import save
from pyvae.report.markup import Section, document, figure, row
from pyvae.studies.analysis import average
from pyvae.studies.toys import read_toy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {"theta": "mu, generative", "phi": "b, inference"}


def write_page(out: Path) -> Path:
    """Write ``out/report.html`` and ``out/figures/snr.png``.

    Args:
        out: holds the ``results.json`` of :func:`pyvae.studies.toys.reproduce_toy`.

    Raises:
        RunError: that is missing or damaged, or a file cannot be written.
    """
    title, scale, toy, curves = read_toy(out)
    seeds = list(curves)
    rows = [_row([curves[seed][i] for seed in seeds]) for i in range(len(curves[seeds[0]]))]
    notice = (
        ""
        if scale == 1
        else f"Scaled run: {scale:g} of the draws. Slopes are noisier than those of a full one."
    )
    drawn = figure(
        save(_draw(curves[seeds[0]]), out / "figures/snr.png"),
        f"Signal-to-noise ratio of gradients, seed {seeds[0]}, with the slope fitted from 3 samples on; dashed, "
        "the slope of the theory through the middle of the points. Dotted: what noise alone would look like "
        "without the correction for the number of draws; nothing below it is drawn or fitted.",
        alt="Signal-to-noise ratios against K and against M, both axes logarithmic, for each estimator",
    )
    caption = html.escape(
        f"{toy.dimensions} dimensions, gradients of a batch of {toy.batch} of {toy.data} data, parameters "
        f"{toy.perturbation:g} from the optimum; {len(seeds)} seeds, mean and standard error. Theory: Rainforth et "
        "al. 2018, theorem 1 (total), Tucker et al. 2019 (DReG), for K and M without end; DReG nears it late."
    )
    head = row(["gradient in", "estimator", "against", "slope", "theory"], cell="th")
    sections = [
        Section("Signal and noise", drawn),
        Section(
            "Slopes",
            f'<div class="scroll"><table>{head}{"".join(rows)}</table></div><p class="note">{caption}</p>',
        ),
    ]
    lead = f'<p class="notice">{notice}</p>' if notice else ""
    path = out / "report.html"
    write_atomically(path, document(title, lead, sections).encode())
    return path


def _row(curves: list[Curve]) -> str:
    first = curves[0]
    slopes = [curve.slope for curve in curves if math.isfinite(curve.slope)]
    shown = ""
    if slopes:
        mean = average(slopes)
        shown = f"{mean.value:+.3f}" + (f" ± {mean.error:.3f}" if mean.error is not None else "")
    theory = "" if first.theory is None else f"{first.theory:+g}"
    cells = [_NAMES[first.parameter], first.estimator, first.against, shown, theory]
    return row(cells)


def _draw(curves: Sequence[Curve]) -> Figure:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 4.6), layout="constrained")
    for number, against in enumerate(("K", "M")):
        axes = drawn.add_subplot(1, 2, number + 1)
        for curve in curves:
            if curve.against != against:
                continue
            points = [(s, r.snr) for s, r in zip(curve.samples, curve.ratios, strict=True) if r.known]
            label = f"{_NAMES[curve.parameter]}, {curve.estimator}: slope {curve.slope:+.2f}"
            (line,) = axes.plot([s for s, _ in points], [snr for _, snr in points], ".-", lw=1.2, label=label)
            if curve.theory is not None and points:
                middle = [sum(map(math.log, values)) / len(points) for values in zip(*points, strict=True)]
                ends = [curve.samples[0], curve.samples[-1]]
                law = [math.exp(middle[1] + curve.theory * (math.log(s) - middle[0])) for s in ends]
                axes.plot(ends, law, "--", lw=0.8, alpha=0.6, color=line.get_color())
        floors = next(curve for curve in curves if curve.against == against)
        axes.plot(floors.samples, [r.floor for r in floors.ratios], "k:", lw=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(
            {"K": "K, samples of a bound (M = 1)", "M": "M, bounds averaged (K = 1)"}[against], fontsize=9
        )
        axes.set_title("signal-to-noise ratio", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    return drawn
