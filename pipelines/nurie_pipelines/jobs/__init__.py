"""Jobs on a Ray cluster: submission, log and exit code."""
