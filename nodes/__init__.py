"""The ComfyUI face of the pack: thin nodes and the model patch."""
