"""Training: stages of the colorizer, and its small frozen components."""
