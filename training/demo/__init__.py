"""The main job on the embedded default: ``python -m training.demo`` (``make demo``)."""
