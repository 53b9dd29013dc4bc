"""Draws of the continuous latents given the data and parameters, and expectations over them."""
