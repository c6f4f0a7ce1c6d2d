"""Fitting, saving, trusting and calling a model."""
