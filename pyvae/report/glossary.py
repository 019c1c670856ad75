"""What the numbers of a page mean, for who meets them the first time."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

Better = Literal["higher", "lower"]


class Term(NamedTuple):
    """A number that a page may show."""

    name: str
    """As the page calls it."""
    meaning: str
    """What it measures, from where to where it goes, and where it is from."""
    better: Better | None = None
    """Which direction is good; None where neither is as such."""
    unit: str = ""


_LIBRARY = "Computed as in Locatello et al. 2019 (disentanglement_lib)."
TERMS: dict[str, Term] = {
    "recon": Term(
        "reconstruction",
        "How badly the decoder explains an image from its code: the mean of -log p(x|z), for one z drawn from "
        "q(z|x). Lower is better, and a stronger pull on the KL makes it higher. Comparable only for the same images "
        "and the same likelihood of pixels.",
        "lower",
        "nats",
    ),
    "kl": Term(
        "KL",
        "How much a code says about its image: the divergence of q(z|x) from the prior, summed over the latents. "
        "From 0, where the code says nothing, upwards. Neither direction is good as such: a small one compresses, a "
        "large one keeps detail.",
        None,
        "nats",
    ),
    "elbo": Term(
        "ELBO",
        "The evidence lower bound, -(reconstruction + KL): at most log p(x), the logarithm of the probability of an "
        "image under the model. Higher is better, and at beta above 1 it is not what was trained for. Kingma & "
        "Welling 2014.",
        "higher",
        "nats",
    ),
    "log_p": Term(
        "log p(x)",
        "The logarithm of the probability of an image under the model, estimated from below with many importance "
        "samples of each. Higher is better. Burda et al. 2016.",
        "higher",
        "nats",
    ),
    "iwae_64": Term(
        "IWAE-64",
        "The importance-weighted bound of 64 samples: between the ELBO and log p(x). Higher is better; a gap to log "
        "p(x) means that q(z|x) fits the true posterior badly. Burda et al. 2016, Rainforth et al. 2018.",
        "higher",
        "nats",
    ),
    "effective_sample_size": Term(
        "effective samples",
        "How many of the importance samples of an image bear its estimate of log p(x): from 1 to all of them. With "
        "few, q(z|x) fits badly and the estimate is likely too low. Higher is better.",
        "higher",
    ),
    "active_units": Term(
        "active units",
        "Latents whose posterior mean varies over the images by a variance above 0.01: from 0 to the number of "
        "latents. The others were given up by the model. Neither direction is good as such. Burda et al. 2016.",
    ),
    "active_latents": Term(
        "active latents",
        "Latents that carry at least 0.05 nats of KL: from 0 to all. The others stay close to the prior, and moving "
        "them changes next to nothing. Neither direction is good as such.",
    ),
    "steps": Term("steps", "Updates of the weights that were made, each from one minibatch."),
    "speed": Term(
        "speed",
        "Steps by the time that they took, over the whole run, on the device that is named under Recipe.",
        None,
        "steps/s",
    ),
    "eta_squared": Term(
        "\u03b7\u00b2",
        "The share of the variance of a latent's mean that one factor alone explains (Fisher's correlation ratio): "
        "from 0 to 1. A latent that follows one factor has a number near 1 in one column and near 0 in the others.",
    ),
    "dead_units": Term(
        "dead units",
        "Channels or features behind a ReLU that are 0 for every image of a fixed random subset. No gradient reaches "
        "them, so they learn nothing more, and what they could have told of an image stays untold.",
    ),
    "mig": Term(
        "MIG",
        "Mutual information gap: how much more the best latent knows of a factor than the second best, relative to "
        "the entropy of the factor, averaged over factors. From 0 to 1; higher means that each factor lies in one "
        f"latent. Chen et al. 2018. {_LIBRARY}",
        "higher",
    ),
    "mig-chen": Term(
        "MIG (Chen et al.)",
        "The mutual information gap as its authors estimate it: from samples of q(z|x) and the density of the "
        "aggregate posterior, not from means and histograms. From 0 to 1; higher means that each factor lies in one "
        "latent. Chen et al. 2018.",
        "higher",
    ),
    "factor-vae": Term(
        "FactorVAE score",
        "Hold one factor, and see which latent varies least: how often that latent names the factor. From about 1 / "
        f"number of factors, by chance, to 1; higher is better. Kim & Mnih 2018. {_LIBRARY}",
        "higher",
    ),
    "beta-vae": Term(
        "BetaVAE score",
        "How often a linear classifier tells which factor two images share, from the difference of their codes. From "
        "about 1 / number of factors, by chance, to 1; higher is better, and it is known to be generous. Higgins et "
        f"al. 2017. {_LIBRARY}",
        "higher",
    ),
    "dci": Term(
        "DCI disentanglement",
        "Whether each latent matters to one factor only, by how important it is to classifiers of the factors. From "
        f"0 to 1; higher is better. Eastwood & Williams 2018. {_LIBRARY}",
        "higher",
    ),
    "dci.completeness": Term(
        "DCI completeness",
        "Whether each factor is captured by one latent only: the counterpart of DCI disentanglement. From 0 to 1; "
        "higher is better. Eastwood & Williams 2018.",
        "higher",
    ),
    "dci.informativeness": Term(
        "DCI informativeness",
        "How often classifiers of the factors are right on codes they have not seen, in whatever latents the "
        "information lies. From 0 to 1; higher is better. Eastwood & Williams 2018.",
        "higher",
    ),
    "sap": Term(
        "SAP",
        "Separated attribute predictability: how much better the best single latent predicts a factor than the "
        f"second best, averaged over factors. From 0 to 1; higher is better. Kumar et al. 2018. {_LIBRARY}",
        "higher",
    ),
    "modularity": Term(
        "modularity",
        "Whether each latent informs on one factor at most. From 0 to 1; higher is better, but factors may be spread "
        f"over several latents at no cost. Ridgeway & Mozer 2018. {_LIBRARY}",
        "higher",
    ),
    "explicitness": Term(
        "explicitness",
        "How well a linear classifier reads the factors off all latents together: the area under its ROC curve, 0.5 "
        "by chance and 1 at best. It says nothing of disentanglement. Ridgeway & Mozer 2018.",
        "higher",
    ),
    "irs": Term(
        "IRS",
        "Interventional robustness: how little a latent moves while its factor is held and the others change, "
        "relative to the farthest it ever moves. 1 at best; higher is better, and latents that do nothing count for "
        "little. Suter et al. 2019.",
        "higher",
    ),
    "total-correlation": Term(
        "total correlation",
        "How far the latents are from independent: the divergence of the aggregate posterior q(z) of all images from "
        "the product of its marginals, by its density. From 0, where they are independent, upwards; lower is better. "
        "No factors are needed. Kim & Mnih 2018, Chen et al. 2018.",
        "lower",
        "nats",
    ),
    "total-correlation.gaussian": Term(
        "total correlation, as if Gaussian",
        "The total correlation of the Gaussian that has the covariance of the aggregate posterior q(z): what "
        "correlations alone see. From 0 upwards; lower is better, but 0 does not mean independent.",
        "lower",
        "nats",
    ),
    "unsupervised.gaussian_total_correlation": Term(
        "Gaussian total correlation",
        "Dependence between the latents of the mean codes, as if they were Gaussian. From 0, where they are "
        f"uncorrelated, upwards; lower is better. No factors are needed. {_LIBRARY}",
        "lower",
        "nats",
    ),
    "unsupervised.gaussian_wasserstein_correlation": Term(
        "Wasserstein correlation",
        "Squared 2-Wasserstein distance of the Gaussian of the mean codes to the product of its marginals, in the "
        f"squared unit of the codes. From 0 upwards; lower is better. No factors are needed. {_LIBRARY}",
        "lower",
    ),
    "unsupervised.gaussian_wasserstein_correlation_norm": Term(
        "Wasserstein, relative",
        "The Wasserstein correlation relative to the variance of the codes, so that their scale does not matter. "
        f"From 0 to 2; lower is better. No factors are needed. {_LIBRARY}",
        "lower",
    ),
    "unsupervised.mutual_information": Term(
        "mutual information",
        "What two latents know of one another, by histograms, averaged over all pairs. From 0 upwards; lower is "
        f"better. No factors are needed. {_LIBRARY}",
        "lower",
        "nats",
    ),
    "udr": Term(
        "UDR",
        "Unsupervised disentanglement ranking: whether models of other seeds have found the same latents. From 0 to "
        "1; higher is better. No factors are needed, but several models. Duan et al. 2020.",
        "higher",
    ),
    "information": Term(
        "information bound",
        "A lower bound of what an image of the generator says about the codes it was made from, summed over the "
        "codes. Higher is better; what it can reach depends on the codes. Chen et al. 2016 (InfoGAN).",
        "higher",
        "nats",
    ),
    "information_of_code": Term(
        "bound",
        "The same lower bound for one code. A continuous code whose variance is fixed to 1 goes from -0.392, where "
        "nothing is known of it, to -0.226, where all is; a categorical one from 0 to the logarithm of its classes.",
        "higher",
        "nats",
    ),
}


def term(key: str, *, name: str | None = None) -> str:
    """HTML of a term's name that explains itself when one hovers over it, focuses or touches it.

    Args:
        key: in ``TERMS``; any other is shown as it is.
        name: what to call it here.
    """
    found = TERMS.get(key)
    if found is None:
        return html.escape(name or key)
    return explained(name or found.name, found.meaning)


def explained(name: str, meaning: str) -> str:
    """HTML of a name with an explanation, as :func:`term` has it."""
    # markup.document numbers the ids
    return (
        f'<span class="term"><button type="button" aria-describedby="about-?">{html.escape(name)}</button>'
        f'<span class="about" role="tooltip" id="about-?">{html.escape(meaning)}</span></span>'
    )


def glossary(keys: Iterable[str]) -> str:
    """The same explanations in a list, folded on a screen and open in print."""
    found = [TERMS[key] for key in dict.fromkeys(keys) if key in TERMS]
    if not found:
        return ""
    listed = "".join(f"<dt>{html.escape(t.name)}</dt><dd>{html.escape(t.meaning)}</dd>" for t in found)
    return (
        f'<details><summary>All explanations in a list</summary><dl class="glossary">{listed}</dl></details>'
    )


def scores_in(kept: dict[str, dict[str, object]]) -> Iterator[tuple[str, float]]:
    """Keys of ``TERMS`` with the values of scores that ``metrics.json`` holds: of each metric its score, or where it
    has several numbers of one rank, all of them."""
    for metric, parts in kept.items():
        for part, value in parts.items():
            key = metric if part == "score" else f"{metric}.{part}"
            if isinstance(value, float) and key in TERMS:
                yield key, value
