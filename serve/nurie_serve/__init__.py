"""The Ray Serve application: an HTTP endpoint and a page in front of the colorization model."""
