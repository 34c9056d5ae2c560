"""What can be told about the data: where clips lie, how they are cut into samples, what happens to bad ones."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LATENT_STRIDE = 16  # pixels per token: the VAE's 8 times the transformer's patch of 2
TEXT_TOKENS = 512  # of Wan's text encoder

_MOST_UNEVEN = 1_000_000  # the order of samples is laid out in stretches that hold every set twice


def as_tuple(value: Any) -> Any:
    """Return a tuple for a list, which is what TOML and JSON have; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _as_tuples(value: Any) -> Any:
    return tuple(as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


def _place(value: str) -> str:
    """Return what can be a path, with the home folder for ``~``; an empty one would be the working folder."""
    if not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} names no file or folder; write its path")
    return os.path.expanduser(value)


MOST = 2**31 - 1  # what torch and the file formats count with everywhere
Positive = Annotated[int, Field(gt=0, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Annotated[int, Field(gt=0, le=1024)]
Frames = Annotated[int, Field(gt=0, le=8193)]
Side = Annotated[int, Field(gt=0, le=8192)]
Place = Annotated[str, AfterValidator(_place)]
Share = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[tuple[float, float], BeforeValidator(as_tuple)]
Triples = Annotated[tuple[tuple[Frames, Side, Side], ...], BeforeValidator(_as_tuples)]


class Section(BaseModel):
    """A table of the configuration: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class DataSet(Section):
    """One of several data sets that a run mixes: a folder, one file, or a JSONL list of files."""

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the samples that a run sees, relative to the other sets' weights, however large the sets are."""
    videos: Place | None = None
    """A folder (searched recursively) or one file, captions beside the files."""
    file: Place | None = None
    """JSON lines: ``path`` (relative to the list), ``caption``, and if wanted ``start``, ``end`` (seconds), ``weight``
    (how many samples the clip gives, relative to the others)."""
    kind: Literal["videos", "images", "both"] = "videos"
    """Which files of a folder are taken; a list names its files itself."""

    @model_validator(mode="after")
    def _consistent(self) -> DataSet:
        if (self.videos is None) == (self.file is None):
            which = "neither videos nor file" if self.file is None else "both videos and file"
            raise ValueError(
                f"set '{self.name}' has {which}; give one: videos = a folder, or file = a list in JSON lines"
            )
        return self


class DataConfig(Section):
    """Clips in, samples out. Unknown keys and wrong types are errors; so are sizes that Wan cannot take."""

    videos: Place | None = None
    """A folder of videos (searched recursively), or one video file; for more than one, ``sets``."""
    sets: Annotated[tuple[DataSet, ...], BeforeValidator(as_tuple)] = ()
    fps: Annotated[float, Field(gt=0, le=240)] = 16.0
    frames: Frames = 29
    height: Side = 128
    width: Side = 192
    buckets: Triples = ()
    """[frames, height, width] of the samples; a clip goes to the one that suits it. None: frames, height, width."""
    bucket_tokens: Positive | None = None
    """Make the buckets instead: all shapes from 9:16 to 16:9, up to ``frames`` long and ``height * width`` large, that
    have no more tokens than this."""
    samples_per_clip: Positive = 48
    val_samples_per_clip: Positive = 8
    samples_per_image: Positive = 1
    scale_range: Pair = (1.0, 1.6)
    """How much larger than the crop a clip is made, 1.0 being the smallest size that covers it."""
    max_upscale: Annotated[float, Field(ge=1)] = 4.0
    """Clips that would have to be enlarged by more than this to cover their bucket are left out."""
    flip: bool = True
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.375
    """Share of each clip's end that is kept for validation; training windows end before it. Images: share of them."""
    scene_cuts: bool = False
    """Find hard cuts, and place no sample across one."""
    captions: Literal["error", "skip", "empty"] = "error"
    """What happens to a clip without a ``<clip>.txt`` beside it."""
    max_bad: Share = 0.05
    """Share of clips that may be unusable (listed in bad.jsonl) before the run is refused."""
    text_encoder: Place = "zeros"
    """'zeros' (no text: every sample has the zero embedding) or a local folder with UMT5 and its tokenizer."""
    text_length: Positive = TEXT_TOKENS
    condition: Literal["none", "first", "first-last"] = "none"
    """What the model is given beside the text: nothing (T2V), the first frame (I2V), or first and last frame."""
    image_encoder: Place = "zeros"
    """'zeros' or a local folder with the CLIP vision model (ViT-H) of Wan's image-to-video models."""
    workers: Threads = 4
    """Threads that decode clips ahead while the VAE encodes."""
    seed: Seed = 0
    cache: Place = ".cache/latents"

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        self._check_sets()
        _check_shape(self.frames, self.height, self.width, "")
        for number, bucket in enumerate(self.buckets):
            _check_shape(*bucket, f"buckets[{number}] ")
        repeated = [list(b) for i, b in enumerate(self.buckets) if b in self.buckets[:i]]
        if repeated:
            raise ValueError(f"buckets has {repeated[0]} twice; remove one")
        if self.buckets and self.bucket_tokens is not None:
            raise ValueError("buckets and bucket_tokens exclude each other; remove one")
        low, high = self.scale_range
        if not 1 <= low <= high <= 16:
            raise ValueError(f"scale_range is [{low:g}, {high:g}]; write [low, high] with 1 <= low <= high <= 16")
        if self.condition != "none":
            self._check_condition()
        elif self.image_encoder != "zeros":
            raise ValueError(
                "image_encoder is given but condition is 'none', so it would not be used; set condition to 'first' or"
                " 'first-last', or remove image_encoder"
            )
        return self

    def _check_sets(self) -> None:
        if self.videos is None and not self.sets:
            raise ValueError("videos is missing; name a folder of clips, or write one [[data.sets]] per data set")
        if self.videos is not None and self.sets:
            raise ValueError("videos and sets exclude each other; write the folder as one more [[data.sets]]")
        if self.sets:
            least, most = (by(self.sets, key=lambda one: one.weight) for by in (min, max))
            if least.weight * _MOST_UNEVEN < most.weight:
                raise ValueError(
                    f"set '{least.name}' has weight {least.weight:g}, less than one sample in {_MOST_UNEVEN:,} of set "
                    f"'{most.name}' with {most.weight:g}; raise it, or remove the set"
                )
        names = [one.name for one in self.sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sets have the name '{twice[0]}'; give each set a name of its own")

    def _check_condition(self) -> None:
        with_images = [one.name for one in self.sets if one.kind != "videos"]
        if with_images:
            raise ValueError(
                f"set '{with_images[0]}' takes images, but condition is '{self.condition}': an image has no motion to"
                " learn from its first frame; set its kind to 'videos', or condition to 'none'"
            )
        single = [bucket for bucket in self.buckets or [(self.frames, self.height, self.width)] if bucket[0] == 1]
        if single:
            raise ValueError(
                f"bucket {list(single[0])} has one frame, but condition is '{self.condition}': use 5 frames or more"
            )
        if self.text_length != TEXT_TOKENS:
            raise ValueError(
                f"text_length is {self.text_length}, but image-to-video models take {TEXT_TOKENS} text tokens; use that"
            )

    @property
    def all_sets(self) -> tuple[DataSet, ...]:
        """The data sets; ``videos`` alone is one set without a name of its own."""
        return self.sets or (
            DataSet.model_construct(name="", weight=1.0, videos=self.videos, file=None, kind="videos"),
        )


def _check_shape(frames: int, height: int, width: int, where: str) -> None:
    if frames % 4 != 1:
        low = max(1, (frames - 1) // 4 * 4 + 1)
        raise ValueError(f"{where}frames is {frames}, but Wan takes 4k + 1 frames; use {low} or {low + 4}")
    for name, value in (("height", height), ("width", width)):
        if value % LATENT_STRIDE:
            low = max(LATENT_STRIDE, value // LATENT_STRIDE * LATENT_STRIDE)
            high = (value // LATENT_STRIDE + 1) * LATENT_STRIDE
            fix = f"{low} or {high}" if low < high else str(low)
            raise ValueError(f"{where}{name} is {value}, but it must be a multiple of {LATENT_STRIDE}; use {fix}")
