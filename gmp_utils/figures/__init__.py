"""Plotly figures and the two explorers with their widgets. Computes nothing that a table needs."""
