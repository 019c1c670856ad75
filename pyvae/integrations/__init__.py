"""pyvae's losses in other packages' models. Each module imports its package, so import only what is installed."""
