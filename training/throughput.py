"""Time the trainer's step beside diffusers' dense one: python -m training.throughput --help"""

from fpsattention.training.throughput_cli import main

if __name__ == "__main__":
    raise SystemExit(main())
