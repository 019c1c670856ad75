"""SmallNORB (LeCun, Huang & Bottou 2004), read from the six published files.

Files, format and the meaning of their values: https://cs.nyu.edu/~ylclab/data/norb-v1.0-small. Which camera, which
factors in which order, and the filter are those of google-research/disentanglement_lib at 86a644d,
disentanglement_lib/data/ground_truth/norb.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyvae.data.binary_matrix import is_matrix, open_matrix
from pyvae.data.columns import DAMAGE, Column, check_size, damaged
from pyvae.data.dataset import strides
from pyvae.data.origin import Origin
from pyvae.data.paths import existing, expanded
from pyvae.data.pixel_grid import SIDE, Append, PixelGrid
from pyvae.data.resize import lanczos
from pyvae.errors import DataError, printable

Array = npt.NDArray[Any]

FACTOR_NAMES = ("category", "instance", "elevation", "azimuth", "lighting")
FACTOR_SIZES = (5, 10, 9, 18, 6)
"""Of both halves together; each has half of the instances."""
TOYS = FACTOR_SIZES[1]

_AGAIN = "download it again from https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"
_CAMERAS, _PUBLISHED_SIDE = 2, 96
_PAIRS_AT_ONCE = 256
_SUFFIXES = (".mat", ".mat.gz")


class Half(NamedTuple):
    """The training or the testing images: the files of their pixels, categories and other factors."""

    dat: Path
    cat: Path
    info: Path


class SmallNORB(PixelGrid):
    """48,600 grey images of 50 toys, of which there are ten to a category; the factors are `FACTOR_NAMES`.

    ``path`` is that of a folder with both halves, or of the ``-dat`` file of one, gzipped or not, which gives 24,300
    images of its five instances; the ``-cat`` and ``-info`` files lie beside it. The files are in no order: images are
    sorted into the grid of their factors. Each is that of the first of two cameras, resized from 96 to 64 pixels.
    The instances of one category have nothing to do with those of another; where they are to be no factor, as in
    disentanglement_lib, metrics leave them out (``without=("instance",)``).

    ``factor_sizes`` is for files of the same make with fewer classes. Raises `DataError` when files are missing,
    damaged, or not those of SmallNORB.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        factor_sizes: Sequence[int] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        existing(path)
        # not its real path: the other files are beside the link, if it is one
        path = Path(os.path.abspath(expanded(path)))
        halves = _halves(path)
        if factor_sizes is None:
            categories, toys, *views = FACTOR_SIZES
            factor_sizes = (categories, toys * len(halves) // 2, *views)
        files = [file for half in halves for file in half]
        classes = [_classes(half, factor_sizes) for half in halves]
        instances = np.unique(np.concatenate([each[:, 1] for each in classes]))
        position = _positions(halves, classes, instances, factor_sizes)

        def pack(append: Append) -> None:
            pixels = np.empty((len(position), SIDE * SIDE), np.uint8)
            with tqdm(
                total=len(position), desc=f"packing {printable(path.name)}", unit="img", disable=not progress
            ) as bar:
                start = 0
                for half, rows in zip(halves, classes, strict=True):
                    _read(half.dat, len(rows), pixels, position[start : start + len(rows)], bar)
                    start += len(rows)
            append(pixels)

        category, _, elevation, azimuth, lighting = (
            np.arange(size, dtype=np.float64) for size in factor_sizes
        )
        values = (category, instances.astype(np.float64), 30 + 5 * elevation, 20 * azimuth, lighting)
        super().__init__(
            name="smallnorb",
            path=path,
            channels=1,
            factors=dict(zip(FACTOR_NAMES, values, strict=True)),
            version="v1",
            found=lambda: Origin.of_files(files[0].parent, [file.name for file in files], progress),
            pack=pack,
            cache_dir=cache_dir,
        )


def is_smallnorb(path: Path) -> bool:
    """Whether a file begins as those of NORB do, or a folder has one whose name ends so and which does."""
    if not path.is_dir():
        return is_matrix(path)
    return any(is_matrix(file) or file.name.startswith("smallnorb-") for file in _dat_files(path))


def _dat_files(folder: Path) -> list[Path]:
    """The files of pixels in a folder, each once; the unpacked one, where there are both."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check it") from error
    found: dict[str, Path] = {}
    for suffix in _SUFFIXES:
        for name in names:
            if name.endswith(f"-dat{suffix}"):
                found.setdefault(name.removesuffix(suffix), folder / name)
    return [found[stem] for stem in sorted(found)]


def _halves(path: Path) -> list[Half]:
    if path.is_dir():
        files = _dat_files(path)
        if len(files) != 2:
            raise DataError(
                f"{path}: {len(files)} -dat files of SmallNORB in it instead of two, of training and testing; "
                f"put the six published files there, or give the path of one -dat file for its half alone; {_AGAIN}"
            )
    else:
        files = [path]
    return [_half(file) for file in files]


def _half(dat: Path) -> Half:
    suffix = next((each for each in _SUFFIXES if dat.name.endswith(f"-dat{each}")), None)
    if suffix is None:
        raise DataError(
            f"{dat}: a matrix as those of NORB, but no -dat.mat file; give the folder of SmallNORB's files, or "
            "the -dat file of one half, under its published name"
        )
    stem = dat.name.removesuffix(f"-dat{suffix}")
    return Half(dat, *(_beside(dat, stem, kind) for kind in ("cat", "info")))


def _beside(dat: Path, stem: str, kind: str) -> Path:
    found = (dat.with_name(f"{stem}-{kind}{suffix}") for suffix in _SUFFIXES)
    file = next((each for each in found if os.path.isfile(each)), None)
    if file is None:
        raise DataError(f"{dat}: {stem}-{kind}.mat is not beside it, gzipped or not; {_AGAIN}")
    return file


@contextlib.contextmanager
def _opened(path: Path, dtype: Any, shape: tuple[int | None, ...]) -> Iterator[Column]:
    """A matrix of this type and shape, None being any size."""
    try:
        with open_matrix(path) as column:
            fits = len(shape) == len(column.shape) and all(
                n in (None, m) for n, m in zip(shape, column.shape, strict=True)
            )
            if column.dtype != dtype or not fits:
                wanted = ", ".join("N" if n is None else str(n) for n in shape)
                raise DataError(
                    f"{path}: it is {column} instead of {np.dtype(dtype)} [{wanted}], so not of SmallNORB; {_AGAIN}"
                )
            check_size(path, "the matrix", column)
            yield column
    except DataError:
        raise
    except DAMAGE as error:
        raise damaged(path, error, _AGAIN) from error


def _classes(half: Half, sizes: Sequence[int]) -> Array:
    """int64 ``[n, F]`` of the images of a half, in its order: the instance by its number, the others by their class."""
    with _opened(half.dat, np.uint8, (None, _CAMERAS, _PUBLISHED_SIDE, _PUBLISHED_SIDE)) as pixels:
        count = pixels.shape[0]
    with _opened(half.cat, np.int32, (count,)) as column:
        category = column.read(count)
    with _opened(half.info, np.int32, (count, 4)) as column:
        info = column.read(count)
    classes = np.column_stack([category, info]).astype(np.int64)
    # the azimuth is given in tens of degrees, of which every second one was taken
    odd = classes[:, 3] % 2
    classes[:, 3] //= 2
    most = np.array([sizes[0], TOYS, *sizes[2:]])
    wrong = (classes < 0) | (classes >= most)
    wrong[:, 3] |= odd.astype(bool)
    if wrong.any():
        image, factor = np.argwhere(wrong)[0].tolist()
        value = category[image] if factor == 0 else info[image, factor - 1]
        raise DataError(
            f"{half.info if factor else half.cat}: {FACTOR_NAMES[factor]} {value} of image {image} is none of "
            f"SmallNORB's; {_AGAIN}"
        )
    return classes


def _positions(
    halves: Sequence[Half], classes: Sequence[Array], instances: Array, sizes: Sequence[int]
) -> Array:
    """int64 ``[N]``: where in the grid each image belongs, after checking that each place has one."""
    every = np.concatenate(classes)
    every[:, 1] = np.searchsorted(instances, every[:, 1])
    count = int(np.prod(sizes))
    where = halves[0].info if len(halves) == 1 else halves[0].info.parent
    if len(every) != count or len(instances) != sizes[1]:
        raise DataError(
            f"{where}: {len(every):,} images of {len(instances)} instances instead of {count:,} of {sizes[1]}, so not "
            f"SmallNORB; {_AGAIN}"
        )
    position = every @ np.array(strides(sizes))
    if len(np.unique(position)) != count:
        raise DataError(f"{where}: some images have the same factors, and others are missing; {_AGAIN}")
    return position


def _read(dat: Path, count: int, pixels: Array, position: Array, bar: Any) -> None:
    """Fill in the rows at these positions: the images of the first camera, resized."""
    with _opened(dat, np.uint8, (count, _CAMERAS, _PUBLISHED_SIDE, _PUBLISHED_SIDE)) as column:
        for start in range(0, count, _PAIRS_AT_ONCE):
            pairs = column.read(min(_PAIRS_AT_ONCE, count - start))
            for row, pair in enumerate(pairs, start):
                pixels[position[row]] = lanczos(pair[0], SIDE).reshape(-1)
            bar.update(len(pairs))
