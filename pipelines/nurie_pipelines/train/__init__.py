"""Training as Ray Train jobs: the chain of stages, the worker loop, engines and checkpoints."""
