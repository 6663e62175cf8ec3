"""Noise schedule and prediction targets: small pure functions."""
