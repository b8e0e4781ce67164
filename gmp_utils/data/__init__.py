"""Corpora, their manifests, waveforms and folds; independent of any model."""
