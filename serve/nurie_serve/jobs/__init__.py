"""Durable jobs: a table with leases, pictures in files, and the events that tell of both."""
