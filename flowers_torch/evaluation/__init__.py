"""Evaluation of trained models: predictions, metrics, calibration, comparison and explanations."""
