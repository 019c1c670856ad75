"""Colours of what is no arm in the figures of docs/findings."""

INK, FAINT = "#333333", "#b5b5b5"
COLOURS = ("#1b6ca8", "#d1495b", "#2a9d5c", "#8d5aa8", "#e08e1b", "#5b6770")
"""Of lines of one run; told apart by the colour-blind too, and labelled besides. Arms have those of palette_of."""
