"""tipline: train on a sample, score every trip."""
