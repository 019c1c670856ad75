"""Objectives of a user's own: frozen dataclasses with ``terms``, made into classes that have the base of all."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, InitVar, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from pyvae.base.constants import constant
from pyvae.base.source import Source, is_spec, source_of, told
from pyvae.bounds import Checked, kinds, refusal, show
from pyvae.errors import PyvaeError, RecipeError, SourceError, reason
from pyvae.objectives import OBJECTIVES
from pyvae.objectives.control_vae import ControlVAE
from pyvae.objectives.factor_vae import FactorVAE
from pyvae.objectives.infogan import InfoGAN
from pyvae.objectives.iwae import ImportanceWeighted
from pyvae.objectives.objective import TERMS, Objective, Outputs

_IMAGES = 4
_DATASET = 1000
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TAKEN = re.compile(r"step|(discriminator_)?grad_norm|discriminator_loss|(kl|information)_\d+")
_PLAIN = (bool, int, float, str, NoneType)
_made: dict[tuple[Source, str], type[Objective]] = {}

RESERVED = frozenset(
    (
        *(
            "name",
            "format",
            "sources",
            "source",
            "extra_terms",
            "compares",
            "term_names",
            "objective",
            "help",
        ),
        # options of training, beside those of a recipe
        *(
            "recipe",
            "out",
            "seeds",
            "sweep",
            "device",
            "log_every",
            "checkpoint_seconds",
            "in_memory",
            "capture",
        ),
        *("compile", "profile", "progress"),
    )
)
"""What no field of an objective can be called, beside the fields of a recipe: options would have one name."""


def objective_of(value: object, base: Path | None = None) -> Objective:
    """An objective, of whatever names one.

    Args:
        value: an objective; the name of a published one, in ``OBJECTIVES``; ``"FILE.py:NAME"`` or
            ``"package.module:NAME"``; or a frozen dataclass with ``terms``, or an instance of one.
        base: folder that a file's path is relative to; default: where the process is.

    Raises:
        RecipeError: it is none, or cannot be trained; one line says why, and what to write.
    """
    if isinstance(value, Objective) and (value.source is not None or type(value) in OBJECTIVES.values()):
        return value
    if isinstance(value, str) and not is_spec(value):
        if value not in OBJECTIVES:
            raise RecipeError(_unknown(value))
        return OBJECTIVES[value]()
    if isinstance(value, str | type | Source):
        if isinstance(value, type) and value in OBJECTIVES.values():
            return _made_of(value)
        return _made_of(own_class(source_of(value, base)))
    if _is_instance(value):
        given = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        return own_class(source_of(type(value)))(**given)
    raise RecipeError(_unknown(value))


def _unknown(value: object) -> str:
    return (
        f"objective must be one of {', '.join(OBJECTIVES)}, or of your own, FILE.py:NAME, got {show(value)}"
    )


def own_class(source: Source) -> type[Objective]:
    """The class of objectives that a user's dataclass is made into; one for each text of it and place in a process.
    Instances of one text are equal if their fields are.

    Raises:
        SourceError: it is no frozen dataclass with terms, or a field cannot be an option; one line says why.
    """
    key = (source, source.spec)
    if key not in _made:
        _made[key] = _class_of(source)
    return _made[key]


def _made_of(kind: type[Any]) -> Objective:
    made: Objective = kind()
    return made


def _is_instance(value: object) -> TypeGuard[Any]:
    return is_dataclass(value) and not isinstance(value, type)


def _class_of(source: Source) -> type[Objective]:
    own: Any = source.object
    if not isinstance(own, type):
        raise SourceError(f"{source} is no class: write a frozen dataclass with terms(self, outputs, step)")
    if "__dataclass_fields__" not in vars(own):
        raise SourceError(
            f"{source} is no dataclass: write @dataclass(frozen=True) above class {own.__name__}"
        )
    if not own.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise SourceError(f"{source} is not frozen: write @dataclass(frozen=True) above class {own.__name__}")
    others = issubclass(own, ImportanceWeighted | InfoGAN)
    terms: Callable[..., Any] | None = getattr(own, "terms", None)
    if not others and (terms is None or terms is Objective.terms):
        raise SourceError(
            f"{source} has no terms: write def terms(self, outputs, step), which returns a dict"
        )
    _check_fields(source, own)
    body: dict[str, Any] = {
        "__doc__": inspect.cleandoc(own.__doc__ or ""),
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__post_init__": _checking(own),
        "__eq__": _equal,
        "__hash__": lambda self: hash((source, *_values(self).values())),
        "__reduce__": lambda self: (_again, (source, _values(self))),
        "source": source,
    }
    if not others and terms is not None:
        body["terms"] = _completing(source, terms)
    bases = (own,) if issubclass(own, Objective) else (own, Objective)
    try:
        made: type[Objective] = dataclass(frozen=True)(type(own.__name__, bases, body))
        made()
    except PyvaeError as error:
        raise SourceError(f"{source}: {error}") from None
    except TypeError as error:
        raise SourceError(f"{source}: {reason(error)}") from error
    return made


def _again(source: Source, values: dict[str, Any]) -> Objective:
    return own_class(source)(**values)


def _equal(one: Objective, other: object) -> bool:
    if not isinstance(other, Objective) or other.source != one.source:
        return False
    return _values(one) == _values(other)


def _values(objective: Any) -> dict[str, Any]:
    return {f.name: getattr(objective, f.name) for f in fields(objective)}


def _check_fields(source: Source, own: type[Any]) -> None:
    try:
        hints = get_type_hints(own)
    except Exception as error:
        raise SourceError(f"{source}: the types of its fields cannot be read: {reason(error)}") from error
    for name, hint in hints.items():
        if isinstance(hint, InitVar):
            raise SourceError(f"{source}: {name} is an InitVar, which no run could keep: make it a field")
    known: Mapping[str, Any] = {name: kind.types for name, kind in kinds(own).items()}  # type: ignore[arg-type]
    for each in fields(own):
        what, shown = f"{source}: field {each.name}", _shown(hints[each.name])
        if each.name in RESERVED:
            raise SourceError(f"{what}: an option of training has this name: call it otherwise")
        if not each.init:
            raise SourceError(f"{what} is not given to the constructor (init=False): make it a property")
        for kind in known[each.name]:
            numbers = get_origin(kind) is tuple and get_args(kind) == (int, ...)
            if kind not in _PLAIN and get_origin(kind) is not Literal and not numbers:
                raise SourceError(
                    f"{what} is a {shown}, which no option can be: take int, float, bool, str, Literal[...], "
                    "tuple[int, ...], or one of them | None"
                )
        if each.default is MISSING and each.default_factory is MISSING:
            raise SourceError(
                f"{what} has no default: write {each.name}: {shown} = {_some(hints[each.name])}"
            )


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _some(hint: Any) -> str:
    examples = {int: "1", float: "1.0", bool: "False", str: '"..."'}
    kind = get_args(hint)[0] if get_args(hint) and get_origin(hint) is not tuple else hint
    return examples.get(kind, repr(kind) if get_origin(hint) is Literal else "()")


def _checking(own: type[Any]) -> Callable[[Any], None]:
    theirs = getattr(own, "__post_init__", None)

    def check(self: Any) -> None:
        if not issubclass(own, Checked):
            Checked.__post_init__(self)
        if theirs is None:
            return
        try:
            theirs(self)
        except PyvaeError:
            raise
        except Exception as error:
            raise refusal(f"{own.__name__}: {reason(error)}") from error

    return check


def _completing(source: Source, terms: Callable[..., Any]) -> Callable[..., dict[str, Tensor]]:
    def complete(self: Any, outputs: Outputs, step: Tensor) -> dict[str, Tensor]:
        recorded = torch.is_grad_enabled()
        found = terms(self, outputs, step)
        if not isinstance(found, dict):
            raise SourceError(
                f"{source}: terms gave a {type(found).__name__}, and should give a dict of scalars, with loss in it"
            )
        if not isinstance(found.get("loss"), Tensor):
            raise SourceError(
                f"{source}: terms gave no tensor loss, which is what is minimised: add it to the dict"
            )
        kl = outputs.kl.sum(-1)
        known = {"recon": outputs.recon, "kl": kl, "beta": 0.0, "capacity": 0.0, **found}
        made = {
            n: x if isinstance(x, Tensor) else constant(_number(source, n, x), kl) for n, x in known.items()
        }
        _check_terms(source, made, kl.device, recorded)
        # sums of bfloat16 products are of that type, which is none of a trace
        return {n: x.float() for n, x in made.items()}

    return complete


def _number(source: Source, name: Any, value: Any) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    raise SourceError(
        f"{source}: the term {name} is a {type(value).__name__}, and should be a tensor of shape []"
    )


def term_names(
    objective: Objective, latents: int, device: torch.device, image_shape: tuple[int, ...] = (1, 64, 64)
) -> tuple[str, ...]:
    """Names of all terms of an objective: ``TERMS``, and those it has beside them. One of a user's own is tried on
    random outputs of a model of such images, ``[C, H, W]``, which also finds what is wrong with it; torch's generators
    are left as they were.

    Raises:
        SourceError: it cannot be trained; one line says why.
    """
    if objective.source is None or isinstance(objective, InfoGAN):
        return (*TERMS, *objective.extra_terms)
    return _tried(objective, latents, device, tuple(image_shape))


@lru_cache(maxsize=64)
def _tried(
    objective: Objective, latents: int, device: torch.device, image_shape: tuple[int, ...]
) -> tuple[str, ...]:
    source = objective.source
    assert source is not None
    numbers = torch.Generator().manual_seed(0)
    mu, logvar = (
        torch.randn(_IMAGES, latents, generator=numbers).mul_(0.5).to(device).requires_grad_() for _ in "ab"
    )
    noise = torch.randn(_IMAGES, latents, generator=numbers).to(device)
    z = mu + (0.5 * logvar).exp() * noise
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(0)
    recon = torch.full((), 30.0, device=device, requires_grad=True)
    step = torch.zeros((), dtype=torch.int64, device=device)
    with _forked(device), told(source):
        if isinstance(objective, ImportanceWeighted):
            target = torch.rand(_IMAGES, 1, 2, 2, generator=numbers).round().to(device)
            weight = torch.randn(latents, 4, generator=numbers).to(device).requires_grad_()
            key = torch.zeros(2, dtype=torch.int64, device=device)
            found, _ = objective.sampled_terms(
                mu, logvar, target, lambda codes: (codes @ weight).unflatten(-1, (1, 2, 2)), key=key
            )
        else:
            control = tc = None
            if isinstance(objective, ControlVAE):
                control = objective.control(objective.initial_control(device), kl.detach().sum(-1), step)
            if isinstance(objective, FactorVAE):
                tc = z.square().mean()
            images = torch.rand(_IMAGES, *image_shape, generator=numbers).to(device)
            weight = torch.randn(latents, images[0].numel(), generator=numbers).to(device)
            logits = (z @ weight).unflatten(-1, image_shape)
            outputs = Outputs(recon, kl, z, mu, logvar, _DATASET, tc, control, images, logits)
            found = objective.terms(outputs, step)
    _check_terms(source, found, recon.device, True)
    grads = torch.autograd.grad(found["loss"], (mu, logvar), allow_unused=True, retain_graph=True)
    if all(grad is None for grad in grads):
        raise SourceError(
            f"{source}: the loss has no gradient in mu and logvar: nothing would be learnt by the encoder"
        )
    return (*TERMS, *(name for name in found if name not in TERMS))


def check_names(objective: Objective, found: dict[str, Tensor], names: tuple[str, ...]) -> None:
    """Refuse terms that are others than :func:`term_names` found.

    Raises:
        SourceError: one that is missing, or new, is named.
    """
    if objective.source is None:
        return
    for name in sorted({*names} ^ {*found}):
        raise SourceError(
            f"{objective.source}: the term {name} is not there in every step: give the same terms always, as with "
            "torch.where, or 0.0 where there is none"
        )


def _check_terms(source: Source, found: dict[str, Tensor], device: torch.device, gradient: bool) -> None:
    for name, value in found.items():
        term = f"{source}: the term {name}"
        if not isinstance(name, str) or not _COLUMN.fullmatch(name):
            raise SourceError(
                f"{term!s} cannot be the name of a column: take letters, digits and underscores"
            )
        if _TAKEN.fullmatch(name):
            raise SourceError(f"{term}: a column of every trace has this name: call it otherwise")
        if value.ndim:
            raise SourceError(
                f"{term} has the shape {list(value.shape)}, and should be one number: sum or average it"
            )
        if not value.is_floating_point():
            raise SourceError(
                f"{term} is {value.dtype}, and should be of floating point: write .float() behind it"
            )
        if value.device != device:
            raise SourceError(
                f"{term} is on {value.device}, and the model on {device}: make it of what is given, as by "
                "outputs.kl.new_zeros(())"
            )
    if gradient and not found["loss"].requires_grad:
        raise SourceError(
            f"{source}: the loss has no gradient: make it of outputs.recon and outputs.kl, undetached"
        )


@contextmanager
def _forked(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
