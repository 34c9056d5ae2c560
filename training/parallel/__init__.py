"""One model over many processes: sharded weights (FSDP2), shared tokens (Ulysses), recomputed activations."""
