"""Predictions to metrics, intervals, comparisons and tables. Knows no training."""
