"""Tables in Markdown, as the pages of docs/findings have them."""

from collections.abc import Iterable, Sequence

from questions.question import Result

NONE_YET = "No run has been measured yet."


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """The first columns are words, the others numbers, which stand at the right."""
    ruler = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ruler, *rows])


def machines(found: Sequence[Result]) -> str:
    """What they were trained on, and measured on: a sentence for each that differs."""
    lines = []
    for result in found:
        training, machine = result["training"], result["machine"]
        lines.append(
            f"Trained on: {training['device']}, engine {training['engine']}, torch {training['versions']['torch']}. "
            f"Measured on: {machine['cpu']}, pyvae {machine['pyvae']}."
        )
    return "\n\n".join(dict.fromkeys(lines))


def name_of(result: Result) -> str:
    """Which run it is."""
    return f"`{result['arm']}`, seed {result['seed']}"


def first_of_arms(found: Sequence[Result]) -> list[Result]:
    """The first run of each arm, in their order."""
    first: dict[str, Result] = {}
    for result in found:
        first.setdefault(result["arm"], result)
    return list(first.values())


def steps_and_minutes(result: Result) -> tuple[str, str]:
    """How long the training was."""
    training = result["training"]
    return f"{training['steps']:,}", f"{training['seconds'] / 60:.0f}"


def dead_units(counted: Sequence[tuple[str, int, list[list[int]] | None]]) -> str:
    """Of encoders: run, step, and [dead, all] of each layer; None of a run that has no encoder."""
    rows = [
        (name, f"{step:,}", *(f"{dead} of {units}" for dead, units in layers))
        for name, step, layers in counted
        if layers is not None
    ]
    if not rows:
        return NONE_YET
    return markdown(("run", "step", *(f"layer {k + 1}" for k in range(len(rows[0]) - 2))), rows)
