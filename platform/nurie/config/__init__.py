"""Typed models of every YAML file and the loader. Imports neither torch nor ray."""
