"""Files that `pyvae new` writes: they train as they are, and say what can be changed."""
