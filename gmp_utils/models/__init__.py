"""Encoders (HuBERT, wav2vec 2.0, WavLM), heads, losses and the models of the papers."""
