"""Ray jobs: data, training, evaluation, and their submission to a cluster."""
