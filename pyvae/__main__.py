"""``python -m pyvae``: the command line."""

from pyvae_engine.__main__ import main

if __name__ == "__main__":
    main()
