"""What can be told about the data: where clips lie, how they are cut into samples, what happens to bad ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LATENT_STRIDE = 16  # pixels per token: the VAE's 8 times the transformer's patch of 2


def as_tuple(value: Any) -> Any:
    """Return a tuple for a list, which is what TOML and JSON have; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=8192)]
Share = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[tuple[float, float], BeforeValidator(as_tuple)]


class DataConfig(BaseModel):
    """Clips in, samples out. Unknown keys and wrong types are errors; so are sizes that Wan cannot take."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    videos: str
    """A folder of videos (searched recursively), or one video file."""
    fps: Annotated[float, Field(gt=0, le=240)] = 16.0
    frames: Positive = 29
    height: Side = 128
    width: Side = 192
    samples_per_clip: Positive = 48
    val_samples_per_clip: Positive = 8
    scale_range: Pair = (1.0, 1.6)
    """How much larger than the crop a clip is made, 1.0 being the smallest size that covers it."""
    flip: bool = True
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.375
    """Share of each clip's end that is kept for validation; training windows end before it."""
    captions: Literal["error", "skip", "empty"] = "error"
    """What happens to a clip without a ``<clip>.txt`` beside it."""
    max_bad: Share = 0.05
    """Share of clips that may be unusable (listed in bad.jsonl) before the run is refused."""
    text_encoder: str = "zeros"
    """'zeros' (no text: every sample has the zero embedding) or a local folder with UMT5 and its tokenizer."""
    text_length: Positive = 512
    seed: Annotated[int, Field(ge=0)] = 0
    cache: str = ".cache/latents"

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.frames % 4 != 1:
            low = max(1, (self.frames - 1) // 4 * 4 + 1)
            raise ValueError(f"frames is {self.frames}, but Wan takes 4k + 1 frames; use {low} or {low + 4}")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % LATENT_STRIDE:
                low = max(LATENT_STRIDE, value // LATENT_STRIDE * LATENT_STRIDE)
                high = (value // LATENT_STRIDE + 1) * LATENT_STRIDE
                fix = f"{low} or {high}" if low < high else str(low)
                raise ValueError(f"{name} is {value}, but it must be a multiple of {LATENT_STRIDE}; use {fix}")
        low, high = self.scale_range
        if not 1 <= low <= high <= 16:
            raise ValueError(f"scale_range is [{low:g}, {high:g}]; write [low, high] with 1 <= low <= high <= 16")
        return self
