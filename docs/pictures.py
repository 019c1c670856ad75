"""Make every picture of README.md and docs/ from a run of the demo: ``python docs/pictures.py runs/demo``.

Screenshots want a chromium (``PYVAE_CHROMIUM``, or one on the path) and ``pip install playwright``; without them they
stay as they are, and a line says so.
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

import pyvae
from pyvae.report.traversal import ACTIVE_NATS, DSPRITES_SEEDS

OUT = Path(__file__).resolve().parent / "pictures"
START = DSPRITES_SEEDS[0]
"""The image that latents are moved from: a square."""
SPAN = 2.0
TILES, SIDE, GAP, LINE = 5, 128, 6, 24
FRAMES, MILLISECONDS, GREYS = 32, 70, 24
WIDTH, MARGIN, SETTLED = 1180, 14, 5_000
SEEN = 0.1
"""A latent with less than this share of the largest KL moves too little to be seen."""
FOLLOWS = 0.5
"""A latent is called after a factor that explains so much of its variance."""
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def strongest(numbers: dict[str, Any]) -> list[tuple[int, str]]:
    """Latents that say something, most nats first, each with the factor that it follows or its own name."""
    kl = numbers["kl_of_latents"]
    least = max(ACTIVE_NATS, SEEN * max(kl))
    order = sorted((j for j in range(len(kl)) if kl[j] >= least), key=lambda j: -kl[j])
    named = []
    for j in order[:TILES]:
        shares = dict(
            zip(numbers.get("factors", ()), (numbers.get("eta_squared") or {j: ()})[j], strict=False)
        )
        best = max(shares, key=lambda name: shares[name], default=None)
        named.append((j, best if best is not None and shares[best] >= FOLLOWS else f"z{j}"))
    return named


@torch.inference_mode()
def traversal(run: pyvae.Run, path: Path) -> None:
    """The strongest latents side by side, each moving by itself from ``-SPAN`` to ``SPAN`` and back, for ever."""
    numbers = json.loads((run.path / "metrics.json").read_text())
    model = run.model()
    mu, _ = model.encode(run.dataset.images([START]))
    if not (chosen := strongest(numbers)):
        raise pyvae.PyvaeError(
            f"{run.path}: no latent has {ACTIVE_NATS} nats, so nothing moves: train it for longer"
        )
    frames = []
    for frame in range(FRAMES):
        value = -SPAN * math.cos(2 * math.pi * frame / FRAMES)
        codes = mu.repeat(len(chosen), 1)
        for row, (j, _) in enumerate(chosen):
            codes[row, j] = value
        images = (model.decode(codes).sigmoid()[:, 0] * 255).round().to(torch.uint8).numpy()
        frames.append(_row(images, [name for _, name in chosen]).quantize(GREYS, dither=Image.Dither.NONE))
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0, optimize=True
    )


def _row(images: Any, names: list[str]) -> Image.Image:
    width = len(images) * (SIDE + GAP) - GAP
    row = Image.new("L", (width, SIDE + LINE), 255)
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(size=15)
    for k, (pixels, name) in enumerate(zip(images, names, strict=True)):
        left = k * (SIDE + GAP)
        row.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, 0))
        draw.text((left + SIDE / 2, SIDE + LINE / 2), name, fill=70, font=font, anchor="mm")
    return row


def still(source: Path, path: Path, width: int = 1000, colours: int = 256) -> None:
    """A figure of the report, made small enough for a repository."""
    with Image.open(source) as image:
        picture = image.convert("RGB")
    if picture.width > width:
        picture = picture.resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
        )
    picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's chromium, or None where there is none."""
    program = os.environ.get("PYVAE_CHROMIUM") or next(filter(None, map(shutil.which, _CHROMIUM)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        yield None
        return
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


def screenshots(report: Path, running: Any) -> list[Path]:
    """The report as it opens, and its explorer by itself where it has one."""
    page = running.new_page(viewport={"width": WIDTH, "height": 820}, color_scheme="light")
    page.goto(report.resolve().as_uri())
    page.wait_for_timeout(1_000)
    made = [OUT / "report.png"]
    page.screenshot(path=made[0])
    explorer = page.locator(".explorer:visible")
    if explorer.count():
        made.append(OUT / "explorer.png")
        # it stays at the top, over what is below
        page.evaluate("document.querySelectorAll('nav').forEach((each) => each.remove())")
        page.set_viewport_size(
            {"width": WIDTH, "height": round(explorer.first.bounding_box()["height"]) + 2 * MARGIN}
        )
        explorer.first.evaluate("(element, margin) => scrollTo(0, element.offsetTop - margin)", MARGIN)
        # it draws what is in sight, bit by bit
        page.wait_for_timeout(SETTLED)
        page.screenshot(path=made[-1])
    for path in made:
        still(path, path, width=WIDTH, colours=96)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of a run of the demo that has ended")
    run = pyvae.open(parser.parse_args().run)
    OUT.mkdir(exist_ok=True)
    report = run.report()
    traversal(run, OUT / "traversal.gif")
    figures = run.path / "figures"
    still(figures / f"traversal-{START}.png", OUT / "traversal.png")
    still(figures / "reconstructions.png", OUT / "reconstructions.png")
    still(figures / "trace.png", OUT / "trace.png")
    with browser() as running:
        if running is None:
            print("no screenshots: they want chromium, and pip install playwright", file=sys.stderr)
        else:
            screenshots(report, running)
    for path in sorted(OUT.iterdir()):
        print(f"{path.relative_to(OUT.parent.parent)}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
