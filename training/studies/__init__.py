"""The fidelity study: what sparse FP8 attention costs, and how much of it a joint fine-tune gives back."""
