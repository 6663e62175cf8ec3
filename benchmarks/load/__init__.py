"""`make load-test`: loads and faults against a real application on Ray Serve."""
