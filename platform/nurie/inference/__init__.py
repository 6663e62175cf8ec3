"""From a sketch and a reference to a coloured picture."""
