"""Launcher: train the shipped tiny Wan VAE. ``python -m training.tiny_vae --clip CLIP --out FILE``."""

import sys

from fpsattention.training.tiny_vae_cli import main

if __name__ == "__main__":
    sys.exit(main())
