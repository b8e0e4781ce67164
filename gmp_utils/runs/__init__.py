"""Folders, stages, provenance, parameters and experiments."""
