"""Plotly figures, and the two explorers with their widgets."""
