"""Integrals over continuous latents: layout, detection, and rules of integration."""
