"""Batches, cached features, k-means and the one way to train. Knows no notebook and no result."""
