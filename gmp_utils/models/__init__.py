"""HuBERT and its relatives, heads, losses and the networks of the papers. Knows no folder of a run."""
