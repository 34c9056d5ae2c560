"""Videos in, cached latents and text embeddings out."""
