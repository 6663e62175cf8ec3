"""The command line; torch, Ray and MLflow are imported inside the commands that need them."""
