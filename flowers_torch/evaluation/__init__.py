"""Evaluation: metrics from sums and counts, figures."""
