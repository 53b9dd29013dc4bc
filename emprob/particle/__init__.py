"""Particle methods for programs with one scan: filters, backward simulation, particle Gibbs."""
