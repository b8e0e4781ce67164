"""Computations of the notebooks, from artifacts to artifacts, without figures."""
