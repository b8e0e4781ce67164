"""Encoders (HuBERT and its relatives), heads, losses and the models of the papers."""
