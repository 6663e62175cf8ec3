"""Speed of what the method saves, as ratios between alternatives measured in one run."""
