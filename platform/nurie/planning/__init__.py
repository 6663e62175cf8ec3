"""What a training run takes, before it starts: parameters, operations, memory, hours and cost."""
