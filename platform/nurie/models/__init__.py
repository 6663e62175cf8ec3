"""Networks: parts of diffusers and transformers, and the few modules the method adds."""
