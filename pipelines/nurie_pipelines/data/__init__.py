"""Ray Data jobs: building data sets and feeding them to training."""
