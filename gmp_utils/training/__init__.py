"""Batches, cached features, k-means, and training with transformers' Trainer."""
