"""The search of a pattern per head on a Wan model, headless: sample, measure every candidate, keep the table."""
