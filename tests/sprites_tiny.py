"""dSprites of few orientations and places, on which the questions of docs/findings are tried out."""

from pathlib import Path

from pyvae import data
from pyvae.data.dsprites import DSprites

GRID = (3, 6, 4, 4, 4)


def use_tiny_sprites(monkeypatch, cache: Path) -> DSprites:
    """What a recipe calls dsprites is them from now on, in a cache of their own; the small ones too are counted from
    the first class of each factor."""
    monkeypatch.setenv("PYVAE_CACHE", str(cache))
    made = DSprites.generated(cache, progress=False, _grid=GRID)
    monkeypatch.setattr(data, "load", lambda name, **options: made)
    return made
