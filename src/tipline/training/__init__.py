"""Samples, the learning curve, calibration: what happens before and around the fit."""
