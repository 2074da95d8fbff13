"""Deployment of trained models: prediction, export, serving and packing, from the weights file alone."""
