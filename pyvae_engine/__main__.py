"""The command ``pyvae``, and ``python -m pyvae``; outside ``pyvae``, so that it can say where that is another's."""

import sys

import pyvae_engine


def main() -> None:
    """:func:`pyvae.cli.main`, or one line where ``pyvae`` is another project's, or tyro is missing."""
    if (line := pyvae_engine.overwritten()) is not None:
        sys.exit(f"pyvae: error: {line}")
    try:
        from pyvae import cli
    except KeyboardInterrupt:  # while it is read, which takes a second
        sys.stderr.write("pyvae: interrupted\n")
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        sys.exit("pyvae: error: the command line needs tyro: pip install tyro")
    cli.main()


if __name__ == "__main__":
    main()
