"""E-steps: where the atoms of the latents are, and what weights they have."""
