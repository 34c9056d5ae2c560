"""Write docs/memory.md: python -m training.memory_plans"""

from fpsattention.training.memory_document import main

if __name__ == "__main__":
    raise SystemExit(main())
