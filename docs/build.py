"""Write a page for each op from its docstring: ``python docs/build.py``; with ``--check``, only look."""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pyvae

DOCS = Path(__file__).resolve().parent
KERNELS = DOCS.parent / "kernels"


class Notes(NamedTuple):
    """What a docstring leaves out."""

    formula: str
    backward: str
    moves: str
    not_for: str


NOTES = {
    "bernoulli_nll": Notes(
        "L = (1 / B) sum_i sum_p [softplus(l_ip) - l_ip x_ip]",
        "dL / dl_ip = (sigmoid(l_ip) - x_ip) / B. On a GPU the backward reads logits and target again, the forward "
        "stores nothing; on a CPU loss and gradient come from one pass. A target that asks for a gradient is refused. "
        "The backward has no derivative: gradients of gradients go through `pyvae.reference`.",
        "For logits of s bytes and a target of t bytes (bits: 1/8): s + t forward, 2 s + t backward, a pixel.",
        "For probabilities: keep the logits; a probability near 1 has lost what the loss needs. For Gaussian or other "
        "likelihoods. For a handful of pixels, where calling anything costs more than the sum.",
    ),
    "reparameterize_kl": Notes(
        "z = mu + exp(logvar / 2) eps, KL_j = (1 / B) sum_i (mu_ij^2 + e^logvar_ij - 1 - logvar_ij) / 2",
        "dmu = dz + dKL mu / B; dlogvar = dz (z - mu) / 2 + dKL (e^logvar - 1) / (2 B). The noise is drawn again "
        "from its key instead of stored.",
        "Two inputs read and z written forward, two inputs and dz read and two gradients written backward.",
        "When you need the noise itself, or a posterior that is not a diagonal Gaussian.",
    ),
    "aggregate_log_density": Notes(
        "log q(z_i) = log sum_m W_im prod_j N(z_ij; mu_mj, sigma_mj), and the same with the product outside of the sum",
        "To z, mu and logvar, from the stored log-densities [B, D + 1] and the pairs computed again.",
        "The tables [B, D] stay in the cache, and of B x B x D exponentials none is stored: arithmetic bounds it.",
        "For a data set small enough to sum over all of it, which is exact. On a CPU it is its reference.",
    ),
    "importance_log_weight": Notes(
        "log w = log p(x|z) + log p(z) - log q(z|x) for each of M x K samples of an image",
        "To logits, z, mu and logvar; the images have none.",
        "s bytes a pixel and sample forward, 2 s backward; the target once for all samples of an image.",
        "With one sample and the closed KL: bernoulli_nll and reparameterize_kl have less variance.",
    ),
    "gather_bits": Notes(
        "images_bp = bit p of store[index_b]",
        "None: images are data.",
        "1/8 byte a pixel read, s + 1/8 written, for images of s bytes a pixel.",
        "For grey or coloured images. Where a batch fits into the loader's time anyway.",
    ),
    "permute_dims": Notes(
        "z'_ij = z_(pi_j(i) j) with an independent uniform permutation pi_j of the batch for every latent j",
        "The gather's: the gradient is permuted back.",
        "Each entry once in, once out; the permutation once out, for the backward.",
        "Where every row must stay whole: then torch.randperm.",
    ),
    "code_histogram": Notes(
        "n_jfbc = number of rows whose latent j lies in bin b of its range, and whose factor f is of class c",
        "None: counts.",
        "The codes twice, for the range and for the bins; the counts stay in the cache.",
        "When the codes come in batches: collect them with pyvae.metrics.StreamedMetrics first.",
    ),
    "posterior_entropy": Notes(
        "H(q(z_j)) and H(q(z_j | v_f)) of the mixtures of N posteriors, by quadrature on a grid",
        "None: it is a metric.",
        "N x D posteriors once; the density's nodes stay in the cache: arithmetic bounds it.",
        "For a few hundred codes, where sampling is as quick. Its error is said by `tol`, that of sampling is not.",
    ),
}


def page(op: str) -> str:
    """The page of an op."""
    function, notes = getattr(pyvae, op), NOTES[op]
    signature = str(inspect.signature(function)).replace("torch.Tensor", "Tensor")
    signature = re.sub(r"<([\w.]+): \d+>", r"\1", signature)
    # the public path of a result
    signature = re.sub(r"(pyvae\.reference)\.\w+\.", r"\1.", signature)
    parts = [
        f"# {op}",
        "<!-- written by docs/build.py from the docstring: change that -->",
        f"```\n{op}{signature}\n```",
        f"    {notes.formula}",
        _prose(inspect.getdoc(function) or ""),
        "## Backward",
        _fill(notes.backward),
        "## Bytes",
        _fill(notes.moves),
        *_device_code(op),
        "## When not to use it",
        _fill(notes.not_for),
        f"Specification: `pyvae.reference.{op}`. Tests: [`tests/test_{op}.py`](../../tests/test_{op}.py). "
        f"Times: [`benchmarks/bench_{op}.py`](../../benchmarks/bench_{op}.py).",
    ]
    return "\n\n".join(parts) + "\n"


def _device_code(op: str) -> list[str]:
    path = KERNELS / f"{op}.py"
    if not path.is_file():
        return []
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    return [f"On a GPU, [`kernels/{op}.py`](../../kernels/{op}.py): {_inline(said)}"]


def _prose(docstring: str) -> str:
    """A docstring of this project as Markdown: sections as headings, arguments as a list, examples as code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring).replace("``", "`")
    text, _, examples = text.partition("\n>>> ")
    out = []
    for block in re.split(r"\n(?=(?:Args|Returns|Raises):\n)", text):
        name, _, body = block.partition(":\n")
        if name in ("Args", "Returns", "Raises"):
            body = textwrap.dedent(body)
            out.append(f"**{name}**\n\n{_entries(body) if name == 'Args' else _inline(body)}")
        else:
            out.append(block.strip())
    if examples:
        out.append(f"```pycon\n>>> {examples.rstrip()}\n```")
    return "\n\n".join(out)


def _entries(body: str) -> str:
    entries = re.split(r"\n(?=\S)", body.strip())
    return "\n".join(f"- {_inline(entry)}" for entry in entries)


def _inline(text: str) -> str:
    return " ".join(text.split())


def _fill(text: str) -> str:
    return textwrap.fill(text, 120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not current")
    check = parser.parse_args().check
    old = []
    for op in NOTES:
        path = DOCS / "ops" / f"{op}.md"
        if check and (not path.is_file() or path.read_text() != page(op)):
            old.append(path.name)
        elif not check:
            path.write_text(page(op))
    if old:
        print(f"not current: {', '.join(old)}: run python docs/build.py", file=sys.stderr)
    return bool(old)


if __name__ == "__main__":
    sys.exit(main())
