"""Quantize a Vision Transformer, measure what that gives and what it costs. Knows nothing of Snakemake."""
