"""A recipe: everything that decides what a run computes."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pyvae.base.source import Source, recorded, short
from pyvae.bounds import Checked, Rate, Seed, Steps, Within, refusal, show
from pyvae.engine.plain import checked, checked_fields
from pyvae.errors import RecipeError, SourceError
from pyvae.nets import ArchitectureName, Initialisation
from pyvae.objectives import OBJECTIVES, VAE, ImportanceWeighted, InfoGAN, Objective
from pyvae.objectives.likelihood import Likelihood
from pyvae.objectives.own import objective_of, own_class

FORMAT = 1
Precision = Literal["fp32", "tf32", "fp16", "bf16"]
Engine = Literal["auto", "torch", "fused"]


@dataclass(frozen=True)
class Recipe(Checked):
    """One training run. Two runs of one recipe on one machine are equal bit for bit."""

    objective: Objective = field(default_factory=VAE)
    data: str = "dsprites"
    """"dsprites" (generated), or the path of a genuine dSprites .npz or .hdf5, of 3dshapes.h5, of an MPI3D .npz, of
    the folder of Cars3D or SmallNORB, of a folder of images, or of an array of images in an .npz, .npy or HDF5 file; of
    several arrays one is named so: file.npz:x_train."""
    image_size: Annotated[int, Within(1, 4096)] = 64
    """Side that images of a folder or an array are resized to."""
    channels: Literal[1, 3] | None = None
    """1 or 3 channels of such images; by default 1 where all are grey."""
    crop: Annotated[int, Within(1, 2**16)] | None = None
    """Side of the central square of such images, in their own pixels; by default the largest there is."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """What to do with files of a folder that cannot be decoded."""
    sampling: Literal["epochs", "replacement"] = "epochs"
    """Every image once in an epoch, or every image of a batch drawn by itself."""
    binarise: Literal["none", "stochastic"] = "none"
    """"stochastic": a grey pixel is the probability that it is white, drawn anew whenever the image is used
    (Salakhutdinov & Murray 2008). For images without known factors."""
    likelihood: Likelihood = "bernoulli"
    """Of the pixels; "gaussian" has mean sigmoid(logits) and variance 1."""
    architecture: ArchitectureName | Source = "burgess"
    """Encoder and decoder, by paper; see pyvae.nets. "mlp" and "rainforth" take images of any size, others 64 x 64. Or
    a function of your own, as my_nets.py:build; `pyvae new network my_nets.py` writes one to begin with."""
    init: Initialisation = "torch"
    """Initial weights; see pyvae.nets.build."""
    code: Literal["encoder", "factors"] = "encoder"
    """What z is made from: the image, by the encoder; or the true factors, each through a noisy channel of its own
    (Burgess et al. 2018, section 4.1), for data that has them."""
    latents: Annotated[int, Within(1, 2**16)] = 10
    """Dimensions of z."""
    batch_size: Annotated[int, Within(1, 2**24)] = 64
    """Images in a step."""
    optimizer: Literal["adam", "adagrad"] = "adam"
    """Adam with betas (0.9, 0.999) and epsilon 1e-8, or Adagrad."""
    lr: Rate = 1e-4
    """Learning rate."""
    lr_stage_steps: Steps | None = None
    """Steps of the first of the eight stages of Burda et al. 2016 (an epoch there): stage i lasts 3^i times as long, at
    10^(-i/7) times the learning rate; the last goes on to the end. Default: a constant rate."""
    precision: Precision = "fp32"
    """Of the networks' products, a discriminator's among them; weights, losses and moments are always float32. A CPU
    takes tf32 as fp32. fp16 is of the fused engine alone: it errs as little as tf32 and was twice as fast there
    on an H100, a discriminator's products are tf32 beside it, and what exceeds its range ends the run as any divergence
    does. bf16 on a CPU wants one with instructions for it (AVX-512 BF16 or AMX; `pyvae doctor` says): without them it
    is several times slower than fp32, and refused unless PYVAE_INSIST=1."""
    engine: Engine = "auto"
    """"torch": networks of torch's layers. "fused": networks, loss and Adam in some 28 kernels of our own, on NVIDIA
    GPUs of compute capability 8.0 and up, in fp16, bf16 or tf32; it rounds otherwise, and refuses what it cannot
    train. "auto": fused for fp16, and for bf16 and tf32 on cards where measured results bear it out: the H100 (80 GB,
    SXM) so far; torch otherwise."""
    steps: Steps = 1_500_000
    """Length of the run in steps. A finished run can be prolonged."""
    seed: Seed = 0
    """Decides the weights, the order of the data and the noise: below 2^64."""
    keep_at: Annotated[tuple[int, ...], Within(1, 10**12)] = ()
    """Steps after which the weights are kept for good, in snapshots/, and drawn in the report; those past the end of
    the run once it is prolonged."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "objective", objective_of(self.objective))
        except RecipeError as error:
            raise refusal(str(error)) from error
        super().__post_init__()
        clashing = {each.name for each in fields(self.objective)} & {each.name for each in fields(self)}
        if clashing:
            raise refusal(
                f"{self.objective.source}: field {min(clashing)} is one of every recipe: call it otherwise"
            )
        if self.lr_stage_steps is not None and self.optimizer != "adam":
            raise refusal(f"lr_stage_steps: {self.optimizer} has a constant rate: give --optimizer adam")
        if isinstance(self.objective, ImportanceWeighted) and self.likelihood != "bernoulli":
            raise refusal(
                f"likelihood {self.likelihood}: importance-weighted objectives are of bernoulli pixels"
            )
        if isinstance(self.objective, InfoGAN):
            self._check_adversarial(self.objective)
        if self.precision == "fp16" and self.engine == "torch":
            raise refusal("precision fp16: the torch engine has none: --precision tf32, or --engine fused")
        if self.objective.compares is not None and self.batch_size < 2:
            raise refusal(f"batch_size must be at least 2, got {self.batch_size}: {self.objective.compares}")
        if len(set(self.keep_at)) < len(self.keep_at):
            raise refusal(f"keep_at must be different steps, got {show(self.keep_at)}")

    def _check_adversarial(self, objective: InfoGAN) -> None:
        if self.latents != objective.codes:
            raise refusal(
                f"latents {self.latents}: this objective has {objective.codes} codes: --latents {objective.codes}"
            )
        for name, only in (
            ("architecture", "kim"),
            ("optimizer", "adam"),
            ("likelihood", "bernoulli"),
            ("code", "encoder"),
            ("lr_stage_steps", None),
        ):
            if getattr(self, name) != only:
                raise refusal(
                    f"{name} {getattr(self, name)}: InfoGAN and InfoWGAN-GP are trained with {only or 'none'} alone"
                )

    @property
    def sources(self) -> list[Source]:
        """The code of a user's own that it is made of."""
        return [each for each in (self.architecture, self.objective.source) if isinstance(each, Source)]

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, from which :meth:`from_json` makes the recipe again."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        if isinstance(self.architecture, Source):
            own["architecture"] = self.architecture.spec
        own["objective"] = {"name": objective_name(self.objective), **asdict(self.objective)}
        hashes = {source.spec: source.sha256 for source in self.sources}
        return {"format": FORMAT, **own, **({"sources": hashes} if hashes else {})}

    @classmethod
    def from_json(cls, values: dict[str, Any], kept: Path | None = None) -> "Recipe":
        """The recipe of what :meth:`to_json` gave.

        Args:
            values: those.
            kept: folder with copies of code of a user's own, for what is not where it was, or has changed since.

        Raises:
            RecipeError: the values are not those of a recipe of this version, by name or by type; or code of a user's
                own is not there any more.
        """
        try:
            values = checked(values, dict[str, Any])
            if checked(values.pop("format", None), int, "format") != FORMAT:
                raise RecipeError("written by another version of pyvae")
            hashes = checked(values.pop("sources", {}), dict[str, str], "sources")
            found = {spec: recorded(spec, sha256, kept) for spec, sha256 in hashes.items()}
            own: dict[str, Any] = {}
            if "architecture" in values:
                net = values.pop("architecture")
                mine = isinstance(net, str) and net in found
                own["architecture"] = found[net] if mine else checked(net, ArchitectureName, "architecture")
            objective = checked(values.pop("objective", None), dict[str, Any], "objective")
            name = checked(objective.pop("name", None), str, "objective.name")
            kind = own_class(found[name]) if name in found else OBJECTIVES.get(name)
            if kind is None:
                raise RecipeError(f"unknown objective {name!r}")
            # the type of the field leaves open which of the objectives it is
            return cls(objective=checked(objective, kind, name), **own, **checked_fields(values, cls))
        except SourceError:
            raise
        except ValueError as error:
            raise RecipeError(str(error)) from None


def objective_name(objective: Objective) -> str:
    """By which a recipe keeps an objective: that of ``OBJECTIVES``, or where a user's own lies."""
    if objective.source is not None:
        return objective.source.spec
    return next(name for name, kind in OBJECTIVES.items() if kind is type(objective))


def objective_label(objective: Objective) -> str:
    """The name of an objective as a reader is told it: without the folder of a user's own."""
    return str(objective.source) if objective.source is not None else objective_name(objective)


def differences(mine: Recipe, theirs: Recipe) -> list[str]:
    """Fields in which two recipes differ, with both values, but for the length of the run and where the data lies."""
    changed = changed_sources(mine, {source.spec: source.sha256 for source in theirs.sources})
    a, b = flat(mine), flat(theirs)
    return [f"{name} has changed" for name in changed] + [
        f"{name} is {b.get(name, 'absent')} there and {a.get(name, 'absent')} here"
        for name in a | b
        if name not in ("steps", "data")
        and a.get(name, MISSING) != b.get(name, MISSING)
        # which engine "auto" took stands in the checkpoint, and is compared with that
        and not (name == "engine" and "auto" in (a.get(name), b.get(name)))
    ]


def changed_sources(mine: Recipe, hashes: Mapping[str, str]) -> list[str]:
    """Files of code of a user's own that are not what they were, by their names; of a script or a notebook what it has
    given, since that is in no file of its own.

    Args:
        mine: a recipe.
        hashes: of the other one, by where its code lay.
    """
    theirs = {short(spec): sha256 for spec, sha256 in hashes.items()}
    return [s.name if s.alone else s.file for s in mine.sources if theirs.get(str(s), s.sha256) != s.sha256]


def flat(recipe: Recipe) -> dict[str, Any]:
    """All settings by their names, the objective's among the others; where a user's own code lies is no part of it."""
    values = recipe.to_json()
    values.pop("sources", None)
    objective = values.pop("objective")
    name = objective.pop("name")
    own = {source.spec: str(source) for source in recipe.sources}
    values["architecture"] = own.get(values["architecture"], values["architecture"])
    return {"objective": own.get(name, name), **objective, **values}
