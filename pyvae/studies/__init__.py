"""Studies: many models, the published tables among them."""
