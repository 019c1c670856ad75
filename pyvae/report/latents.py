"""Tables of latents: what each carries, and which factor it follows."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pyvae.report import traversal
from pyvae.report.glossary import term
from pyvae.report.markup import row


def latents_table(metrics: Mapping[str, Any], called: Sequence[str]) -> str:
    """KL and eta^2 of each latent, the highest KL first.

    Args:
        metrics: ``kl_of_latents``, ``factors`` and ``eta_squared``, as ``metrics.json`` has them.
        called: the name of each latent.
    """
    kl, dependence = metrics["kl_of_latents"], metrics["eta_squared"]
    names = "".join(f'<th scope="col" class="number">{html.escape(name)}</th>' for name in metrics["factors"])
    head = f'<th scope="col" class="number">{term("kl")}, nats</th>{names}'
    rows = [f'<tr><th scope="col">latent</th>{head}</tr>']
    for j in sorted(range(len(kl)), key=lambda j: -kl[j]):
        active = kl[j] >= traversal.ACTIVE_NATS
        cells = [f'<td class="number">{kl[j]:.3f}</td>']
        shares = dependence[j] if dependence else []
        for share in shares:
            strongest = active and share == max(shares)
            kind = "number strongest" if strongest else "number"
            cells.append(f'<td class="{kind}">{share:.2f}</td>')
        kind = "active" if active else "inactive"
        rows.append(f'<tr class="{kind}"><th scope="row">{html.escape(called[j])}</th>{"".join(cells)}</tr>')
    return f"<table>{''.join(rows)}</table>"


def codes_table(bounds: Sequence[float], called: Sequence[str]) -> str:
    """The information bound of each code of a generator, by its name."""
    head = f'<tr><th scope="col">code</th><th scope="col" class="number">{term("information_of_code")}, nats</th></tr>'
    rows = "".join(
        row([name, f"{bound:.3f}"], numbers=(1,)) for name, bound in zip(called, bounds, strict=True)
    )
    return f"<table>{head}{rows}</table>"


def active_latents(kl: Sequence[float]) -> int:
    """How many latents are active."""
    return sum(each >= traversal.ACTIVE_NATS for each in kl)
