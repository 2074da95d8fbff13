"""Using a trained model: prediction from the weights file alone."""
