"""What the settings of a recipe mean: the texts that stand below its fields, as the command line's help has them."""

import ast
import inspect
import textwrap


def meanings(kind: type) -> dict[str, str]:
    """Texts below the fields of a dataclass and of those that it is made from, by the name of the field; of one whose
    source is not there, as of a prompt's, none."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        except (OSError, TypeError, ValueError, SyntaxError):
            continue
        if not isinstance(node, ast.ClassDef):
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = " ".join(text.value.value.split())
    return found
