"""``pyvae reproduce``: a published table or figure."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from pyvae.cli.invocation import interrupted, say
from pyvae.engine.files import whole_path
from pyvae.engine.recipe import Engine, Precision
from pyvae.errors import PyvaeError, printable

if TYPE_CHECKING:
    from pyvae.studies.runner import Place

_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Reproduce:
    """Train the arms of a published table or go on with them, evaluate them, and write one report of our numbers
    beside the published ones."""

    name: Positional[str | None] = None
    """What to reproduce; --list names all."""
    list: bool = False
    """Only list what there is, with its arms and published numbers."""
    seeds: int = 5
    """Seeds of each arm."""
    first_seed: int = 1
    """The first of them; the others follow."""
    scale: float = 1.0
    """Shorten every length to this part of it, 0.001 for a try. What comes out is no reproduction."""
    out: Path | None = None
    """Directory of the runs, ARM/seed-N, and of the report; default runs/NAME, with the scale if there is one."""
    data: str = "dsprites"
    """What to train on, as for `pyvae train`; numbers of other data reproduce nothing."""
    precision: Precision = "fp32"
    """Of the networks' products; weights, losses and moments are always float32. See `pyvae train -h`."""
    engine: Engine = "auto"
    """What trains, torch's layers or kernels of our own; see `pyvae train -h`."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ..., or "auto": a GPU where there is one."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    capture: bool = True
    """On a GPU, run several steps as one CUDA graph: faster, and the same results."""
    ray: str | None = None
    """Train on a Ray cluster: its ADDRESS, or "local" for one on this machine. `pip install 'pyvae-engine[ray]'`."""
    num_gpus: float | None = None
    """On Ray, GPUs of a group of runs that train together, 0.5 for two groups on each."""
    num_cpus: float | None = None
    """On Ray, CPU cores of a group."""

    def __call__(self) -> int:
        from pyvae.engine.device import device_named
        from pyvae.engine.opening import open_data
        from pyvae.report import study as study_page
        from pyvae.report import toy as toy_page
        from pyvae.studies.published import STUDIES, parse_scale
        from pyvae.studies.reproduce import describe, reproduce, study_of
        from pyvae.studies.toys import TOYS, reproduce_toy

        if self.list:
            toys = [f"{name}: {title}" for name, (title, _) in TOYS.items()]
            say("\n\n".join([*(describe(name) for name in STUDIES), *toys]))
            return 0
        if self.name is None:
            raise PyvaeError(f"name what to reproduce: there are {', '.join([*STUDIES, *TOYS])}")
        study = None if self.name in TOYS else study_of(self.name)
        scale = parse_scale(self.scale)
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise PyvaeError(f"--seeds must be at least 1 and at most {_MOST_SEEDS:,}, got {self.seeds}")
        if not 0 <= self.first_seed <= 2**64 - self.seeds:
            raise PyvaeError(
                f"--first-seed must not be negative, nor a seed above 2^64 - 1, got {self.first_seed}"
            )
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        place = self._place()
        if place is not None and study is None:
            raise PyvaeError(f"{self.name} takes no cluster: leave --ray out")
        name = self.name if scale == 1 else f"{self.name}-{self.scale:g}"
        out = whole_path(self.out) if self.out else Path("runs") / name
        try:
            if study is None:
                done: Path | None = reproduce_toy(
                    self.name, out, seeds=seeds, scale=self.scale, told=lambda: toy_page.write_page(out)
                )
            else:
                first = study.recipe(study.arms[0], self.data)
                dataset = open_data(first)
                test = _test_file(self.data) if study.likelihoods else None
                done = reproduce(
                    self.name,
                    study,
                    dataset,
                    device_named(self.device),
                    out,
                    seeds=seeds,
                    scale=scale,
                    data=self.data,
                    held_out=open_data(replace(first, data=test)) if test else None,
                    held_out_data=test,
                    precision=self.precision,
                    engine=self.engine,
                    checkpoint_seconds=self.checkpoint_seconds,
                    capture=self.capture,
                    place=place,
                    told=lambda: study_page.write_page(out, dataset),
                )
        except KeyboardInterrupt:
            done = None
        if done is None:
            return interrupted()
        say(printable(str(done.with_name("report.html"))))
        return 0

    def _place(self) -> "Place | None":
        if self.ray is None:
            for name, value in (("--num-gpus", self.num_gpus), ("--num-cpus", self.num_cpus)):
                if value is not None:
                    raise PyvaeError(f"{name} is of Ray: give --ray local, or --ray ADDRESS")
            return None
        from pyvae.studies.on_ray import RayPlace

        return RayPlace(self.ray, num_gpus=self.num_gpus, num_cpus=self.num_cpus)


def _test_file(data: str) -> str | None:
    """Where MNIST's test images lie, if they are beside its training images."""
    from pyvae.data.mnist import test_file
    from pyvae.data.paths import absolute

    test = test_file(Path(data).expanduser())
    return absolute(str(test)) if test else None
