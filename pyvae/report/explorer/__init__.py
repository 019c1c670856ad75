"""The explorer of a report: sliders, and the network that draws what they say, in the page."""

from pyvae.report.explorer.section import pair_section, section

__all__ = ["pair_section", "section"]
