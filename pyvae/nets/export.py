"""A trained network as a file for other programs: an archive of torch.export, or ONNX. Neither needs pyvae to run."""

import copy
import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import pyvae
from pyvae.base.files import replacing
from pyvae.errors import ExportError, reason
from pyvae.nets.adversarial import AdversarialPair, CodePosterior
from pyvae.nets.autoencoder import FactorEncoder

ENDINGS = (".pt2", ".onnx")
TOLERANCE = 1e-4
"""Largest difference between a file's outputs and the network's, as a share of the largest output."""
_LEAST = 1e-2  # outputs below it count as this large, since rounding does not shrink with them
_CHECKED = (1, 3)  # images of the batches that a file is checked on
_PLAIN = ("aten", "prims")  # operators that torch alone has
_MOST_ONNX = 2**31 - 2**20  # bytes of weights, a file being one message of protobuf

Draw = Callable[[int, torch.Generator], Tensor]
"""Random inputs, as many as asked for."""
Loaded = Callable[[Tensor], dict[str, Tensor]]
"""A file, as something to call."""
_one_at_a_time = threading.Lock()  # torch.export keeps its state in globals


def export(
    net: nn.Module,
    image_shape: tuple[int, int, int],
    path: str | os.PathLike[str],
    *,
    part: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a network, or a part of it, to a file that other programs run, for batches of any size.

    The network is left as it is: what is written is a copy on the CPU, in float32 and in evaluation mode. The file is
    read again and run beside it before it takes its place, on random batches of 1 and 3; a file that gives other
    numbers is an error, and none is left. Its only operators are torch's own, or ONNX's.

    Args:
        net: an :class:`pyvae.nets.Autoencoder`; any module whose ``encoder`` gives ``(mu, logvar)`` of images and whose
            ``decoder`` gives logits of ``mu``; or an :class:`pyvae.nets.adversarial.AdversarialPair`.
        image_shape: channels, height and width of its images.
        path: ends in ".pt2" (``torch.export.load(path).module()``) or ".onnx" (``pip install 'pyvae-engine[onnx]'``).
        part: what the file computes. Inputs and outputs have these names in ONNX; a .pt2 takes its input by position,
            and gives a dict.

            - "autoencoder": ``images [B, C, H, W]`` to ``logits [B, C, H, W]`` of ``mu``, and ``mu`` and ``logvar``;
            - "encoder": ``images`` to ``mu [B, D]`` and ``logvar [B, D]``;
            - "decoder": ``z [B, D]`` to ``logits``;
            - "generator": ``inputs [B, N]``, the noise, the codes and the categories, to ``logits``.

            A pair has a generator, and an encoder, its critic's posterior of the codes. Where the encoder is a
            :class:`pyvae.nets.FactorEncoder`, ``index [B]`` (int64) stands for ``images``. By default "autoencoder",
            and of a pair "generator".
        metadata: texts to keep in the file, such as the recipe: ``extra_files`` of a .pt2, ``metadata_props`` of ONNX.
            "pyvae" (the version) and "part" are there always.

    Returns:
        the path.

    Raises:
        ExportError: an argument cannot be, a package is missing, torch cannot take the network, the file computes
            something else, or it cannot be written.
    """
    path = Path(path)
    _check_arguments(net, image_shape, path, metadata)
    part = _part_name(net, part)
    kept = {"pyvae": pyvae.__version__, "part": part, **(metadata or {})}
    with (
        _one_at_a_time,
        _quiet(),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        piece = _piece(_copy(net), part, image_shape)
        program = _traced(piece)
        write, load = _FORMATS[path.suffix]
        try:
            with replacing(path) as temporary:
                write(program, piece, temporary, kept)
                _check(load(temporary, piece), piece, path.name)
        except OSError as error:
            raise ExportError(f"{path} cannot be written: {error.strerror or reason(error)}") from error
    return path


class _Piece(NamedTuple):
    """What a file computes."""

    module: nn.Module
    input: str
    outputs: tuple[str, ...]
    draw: Draw


class _Part(nn.Module):
    """A part of a network with the inputs and outputs that its file names."""

    encoder: Callable[[Tensor], tuple[Tensor, Tensor]]
    decoder: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    critic: Callable[[Tensor], tuple[Tensor, CodePosterior]]

    def __init__(self, net: nn.Module, *names: str) -> None:
        super().__init__()
        for name in names:  # of methods, torch keeps the weights that they read
            setattr(self, name, getattr(net, name))


class _Autoencoder(_Part):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        mu, logvar = self.encoder(images)
        return {"logits": self.decoder(mu), "mu": mu, "logvar": logvar}


class _Encoder(_Part):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        mu, logvar = self.encoder(images)
        return {"mu": mu, "logvar": logvar}


class _FactorAutoencoder(_Autoencoder):
    def forward(self, index: Tensor) -> dict[str, Tensor]:
        return super().forward(index)


class _FactorEncoder(_Encoder):
    def forward(self, index: Tensor) -> dict[str, Tensor]:
        return super().forward(index)


class _Decoder(_Part):
    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return {"logits": self.decoder(z)}


class _Generator(_Part):
    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.generator(inputs)}


class _Critic(_Part):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        _, posterior = self.critic(images)
        mu, logvar = posterior.codes()
        return {"mu": mu, "logvar": logvar}


def _check_arguments(
    net: nn.Module, image_shape: tuple[int, int, int], path: Path, metadata: Mapping[str, str] | None
) -> None:
    if path.suffix not in _FORMATS:
        raise ExportError(f"{path}: expected a name that ends in {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: there is no directory {path.parent}: make it first")
    if path.suffix == ".onnx" and (
        missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    ):
        raise ExportError(f"{path.name} needs {', '.join(missing)}: pip install 'pyvae-engine[onnx]'")
    if len(image_shape) != 3 or not all(isinstance(n, int) and n > 0 for n in image_shape):
        raise ExportError(f"image_shape: expected (channels, height, width), got {image_shape}")
    if not isinstance(net, nn.Module):
        raise ExportError(f"net: expected a torch module, got {type(net).__name__}")
    for key, value in (metadata or {}).items():
        if not (isinstance(key, str) and key and isinstance(value, str)):
            raise ExportError(f"metadata: expected names and texts, got {key!r}: {type(value).__name__}")


def _part_name(net: nn.Module, part: str | None) -> str:
    names = (
        ("generator", "encoder")
        if isinstance(net, AdversarialPair)
        else ("autoencoder", "encoder", "decoder")
    )
    part = names[0] if part is None else part
    if part not in names:
        raise ExportError(f"part: expected {' or '.join(names)}, for this network, got {part!r}")
    if not isinstance(net, AdversarialPair):
        for name in ("encoder", "decoder"):
            if not callable(getattr(net, name, None)):
                raise ExportError(f"net: {type(net).__name__} has no {name}")
    return part


def _copy(net: nn.Module) -> nn.Module:
    """The network on the CPU, in float32, in evaluation mode, of plain weights that no graph knows."""
    try:
        copied = copy.deepcopy(net).to("cpu", torch.float32).eval()
    except Exception as error:
        raise ExportError(f"net: {type(net).__name__} cannot be copied: {_said(error)}") from error
    for module in list(copied.modules()):
        _compute_weights(module)
    for x in (*copied.parameters(), *copied.buffers()):
        x.requires_grad_(False)
        x.data = x.data.contiguous()
    return copied


def _compute_weights(module: nn.Module) -> None:
    """Put weights in the place of parametrisations, spectral normalisation among them, which the file would compute
    for every batch."""
    if not is_parametrized(module):
        return
    weights = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
    del module.parametrizations
    # torch's remove_parametrizations deletes a property of the class, which is that of the copied module too
    module.__class__ = type(module).__bases__[0]
    for name, value in weights.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone()))


def _piece(net: nn.Module, part: str, image_shape: tuple[int, int, int]) -> _Piece:
    name, draw = "images", _uniform(image_shape)
    if isinstance(net, AdversarialPair):
        if part == "encoder":
            return _tried(_Piece(_Critic(net, "critic"), name, ("mu", "logvar"), draw))
        width = next(layer.in_features for layer in net.generator.modules() if isinstance(layer, nn.Linear))
        return _tried(_Piece(_Generator(net, "generator"), "inputs", ("logits",), _normal((width,))))
    encoder, autoencoder = _Encoder, _Autoencoder
    if isinstance(net.encoder, FactorEncoder):
        encoder, autoencoder = _FactorEncoder, _FactorAutoencoder
        name, draw = "index", _indices(math.prod(net.encoder.sizes.tolist()))
    both = ("logits", "mu", "logvar")
    if part == "autoencoder":
        return _tried(_Piece(autoencoder(net, "encoder", "decoder"), name, both, draw))
    encoding = _tried(_Piece(encoder(net, "encoder"), name, both[1:], draw))
    if part == "encoder":
        return encoding
    mu = encoding.module(draw(1, torch.Generator()))["mu"]
    return _tried(_Piece(_Decoder(net, "decoder"), "z", both[:1], _normal(mu.shape[1:])))


def _uniform(shape: tuple[int, ...]) -> Draw:
    return lambda rows, g: torch.rand(rows, *shape, generator=g, device="cpu", dtype=torch.float32)


def _normal(shape: tuple[int, ...]) -> Draw:
    return lambda rows, g: torch.randn(rows, *shape, generator=g, device="cpu", dtype=torch.float32)


def _indices(count: int) -> Draw:
    return lambda rows, g: torch.randint(count, (rows,), generator=g, device="cpu")


def _tried(piece: _Piece) -> _Piece:
    """The piece, if it computes what it should of one input."""
    x = piece.draw(1, torch.Generator())
    try:
        found = piece.module(x)
    except Exception as error:
        shape = [int(n) for n in x.shape]
        raise ExportError(
            f"the network does not take {piece.input} of shape {shape}: {_said(error)}"
        ) from error
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise ExportError(f"the network: expected a tensor for {name}, got {type(value).__name__}")
    return piece


def _traced(piece: _Piece) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    example = piece.draw(2, torch.Generator())
    try:
        program = torch.export.export(piece.module, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise ExportError(f"torch.export does not take this network: {_said(error)}") from error
    for graph_module in program.graph_module.modules():
        for node in graph_module.graph.nodes if isinstance(graph_module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
            target = node.target
            if isinstance(target, torch._ops.OpOverload) and target.namespace not in _PLAIN:
                raise ExportError(
                    f"the network calls {target}, which other programs lack: use operators of torch"
                )
    return program


def _write_archive(
    program: torch.export.ExportedProgram, piece: _Piece, path: Path, metadata: dict[str, str]
) -> None:
    archive = io.BytesIO()  # where the disk is full, torch's writer ends the process
    torch.export.save(program, archive, extra_files=metadata)
    path.write_bytes(archive.getbuffer())


def _load_archive(path: Path, piece: _Piece) -> Loaded:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(
    program: torch.export.ExportedProgram, piece: _Piece, path: Path, metadata: dict[str, str]
) -> None:
    if sum(x.nbytes for x in program.state_dict.values()) > _MOST_ONNX:
        raise ExportError("the network has more than the 2 GB that an .onnx file holds: write a .pt2")
    try:
        written = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=[piece.input],
            output_names=list(piece.outputs),
            dynamic_shapes=({0: "batch"},),
        )
        assert written is not None
        written.model.metadata_props.update(metadata)
        written.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"torch.onnx does not take this network: {_said(error)}") from error


def _load_onnx(path: Path, piece: _Piece) -> Loaded:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime does not take this network: {_said(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def run(x: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {piece.input: x.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return run


_FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path, _Piece], Loaded]]] = {
    ".pt2": (_write_archive, _load_archive),
    ".onnx": (_write_onnx, _load_onnx),
}


def _check(run: Loaded, piece: _Piece, name: str) -> None:
    """Raise unless a file gives what the network gives."""
    generator = torch.Generator().manual_seed(0)
    for rows in _CHECKED:
        x = piece.draw(rows, generator)
        expected = piece.module(x)
        try:
            found = run(x)
        except Exception as error:
            raise ExportError(f"{name} does not run on a batch of {rows}: {_said(error)}") from error
        if tuple(found) != piece.outputs:
            raise ExportError(f"{name} gives {', '.join(found)}, not {', '.join(piece.outputs)}")
        for output, right in expected.items():
            share = _difference(found[output], right)
            if not share <= TOLERANCE:
                raise ExportError(
                    f"{name} is not what the network computes: {output} of a batch of {rows} differ by {share:.1e} of "
                    f"the largest, more than {TOLERANCE:g}"
                )


def _difference(found: Tensor, right: Tensor) -> float:
    """The largest difference as a share of the largest number; infinite where the two are not of one kind."""
    if found.shape != right.shape or found.dtype != right.dtype:
        return math.inf
    same = (found == right) | (found.isnan() & right.isnan())
    finite = right.masked_fill(~right.isfinite(), 0.0)
    size = max(float(finite.abs().amax()), _LEAST)
    share = (found - right).abs().masked_fill(same, 0.0).amax() / size
    return math.inf if share.isnan() else float(share)


def _said(error: Exception) -> str:
    """torch's reason in a line: the first of the particulars, if it lists any."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    listed = next((line.removeprefix("  - ") for line in lines[:2] if line.startswith("  - ")), None)
    return reason(error if listed is None else ValueError(listed))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings, logs and graphs that torch prints on the way, unless they are asked for: what matters is
    checked, or raises."""
    if os.environ.get("TORCH_LOGS"):
        yield
        return
    mine = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != mine

    loggers = [
        logger for name, logger in logging.root.manager.loggerDict.items() if name.split(".")[0] == "torch"
    ]
    handlers = [h for logger in loggers if isinstance(logger, logging.Logger) for h in logger.handlers]
    for handler in handlers:
        handler.addFilter(of_others)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(of_others)
