"""What the note beside each shipped workflow tells."""

from __future__ import annotations

TRAINED = """## Wan2.1 {size} with its own attention

**Load FPSAttention Wan** reads a Wan file that was trained *with* sparse FP8 attention, and patches it with the
schedule in its header. Nothing else has to be set.

1. No such checkpoint is published: put one that you exported with this pack's trainer into
   `models/diffusion_models` and choose it in the first node. You have none? Take the template
   `wan2.1_t2v_stock_with_fpsattention`. An ordinary Wan file works here too: it runs dense, and the report says so.
2. Text encoder: `models/text_encoders/{text_encoder}`
3. VAE: `models/vae/{vae}`

**FPSAttention Report** shows after sampling what every step ran, how long it took, and every reason for staying dense.
"""

STOCK = """## Stock Wan2.1 with FPSAttention

**FPSAttention (Wan)** makes the self-attention of an ordinary Wan model sparse and FP8.

The weights were not trained for that, so the schedule here is *mild*: dense while the layout of the picture forms,
then windows of 60 % in height and width over all frames. A stronger schedule computes less and changes the content
more; the report says so.

- Model: `models/diffusion_models/{model}`
- Text encoder: `models/text_encoders/{text_encoder}`
- VAE: `models/vae/{vae}`

Edit the phases in the table of **FPSAttention Schedule** (its preset is `custom`, its text that of mild). To compare:
set *control after generate* of **KSampler** to `fixed`, queue, set the preset to `dense`, queue again.
"""

IMAGE_TO_VIDEO = """## Image to video with FPSAttention

An ordinary Wan2.1 I2V model, made sparse and FP8 by **FPSAttention (Wan)**. The picture's conditioning is channels and
cross-attention, so every token of the sequence belongs to the video and gets a window.

1. Choose your picture in **Load Image**.
2. Describe what should move.
3. Queue. **FPSAttention Report** shows what every step ran.

- Model: `models/diffusion_models/{model}` (with 24 GB or less set its `weight_dtype` to `fp8_e4m3fn`)
- Image encoder: `models/clip_vision/{clip_vision}`
- Text encoder: `models/text_encoders/{text_encoder}`
- VAE: `models/vae/{vae}`

**720p:** choose `wan2.1_i2v_720p_14B_fp16.safetensors`, set 1280 x 720 and a shift of 5. The longer the sequence, the
more of the time is attention, and the more there is to save.
"""

VACE = """## VACE with FPSAttention

A reference picture becomes a video. **WanVaceToVideo** puts the reference in front as frames of their own,
**TrimVideoLatent** takes them away after sampling. FPSAttention sees them as ordinary frames, in the main blocks and
in VACE's control blocks alike.

1. Choose the reference in **Load Image**.
2. Queue. **FPSAttention Report** shows what every step ran and why anything stayed dense.

- Model: `models/diffusion_models/{model}` (the 14B works with the same nodes)
- Text encoder: `models/text_encoders/{text_encoder}`
- VAE: `models/vae/{vae}`

To follow the motion of a video, connect its frames to `control_video`; to change a part only, connect a mask to
`control_masks`.
"""

FEW_STEPS = """## Four steps: a distilled LoRA with FPSAttention

With 4 steps every step counts, so the preset **few-step** keeps only the first one dense (sigma 1, where the layout
forms) and runs the other three in windows of 60 % in height and width over all frames. Guidance is off (cfg 1), so the
negative prompt is not used.

- Model: `models/diffusion_models/{model}`
- LoRA: `models/loras/{lora}`, from `lightx2v/Wan2.1-Distill-Loras` on Hugging Face
- Text encoder: `models/text_encoders/{text_encoder}`
- VAE: `models/vae/{vae}`

Sampler lcm, 4 steps, cfg 1 and shift 5 are the LoRA's own settings. The LoRA was not trained for sparse attention: set
*control after generate* of **KSampler** to `fixed` and compare with the preset `dense` before you rely on it.
With 24 GB or less set `weight_dtype` of the loader to `fp8_e4m3fn`.
"""

COMPARE = """## Dense and FPSAttention, side by side

The same seed, prompt and steps twice: above dense, below with FPSAttention. The two videos come out as one, dense on
the left.

Both branches run through **FPSAttention (Wan)**, the upper one with the schedule `0.00 dense`, which is exactly
ComfyUI's own attention. So both reports show seconds per step, measured the same way: compare them from the second
step on, the first holds loading and compiling.

- Model: `models/diffusion_models/{model}`
- Text encoder: `models/text_encoders/{text_encoder}`
- VAE: `models/vae/{vae}`

Set the seed in **Seed for both**. Change the lower schedule and queue again: the dense half is not computed twice.
"""

PROFILE = """## Profile, schedule, sample

**FPSAttention Profile** runs *your* model on *your* prompt, measures at which noise levels it bears windows and FP8,
and proposes a schedule for the density that you ask for. **FPSAttention Preview** draws it for your size, and the
sampler uses it.

1. Set `density`, the share of attention that may remain (0.30 is 30 %), or set `aim` to psnr and say how close to
   dense the result must stay, in dB.
2. Queue. The profile runs once and is kept while its inputs stay the same.
3. Keep the result: copy **Schedule to keep** into a **FPSAttention Schedule** node.

**This takes long:** effort `runs` samples about seven videos of this size before your own; the log says how long. Begin
with a smaller size. `rows` costs one dense run and up to three dense steps more, but gives a uniform schedule only.

- Model: `models/diffusion_models/{model}`
- Text encoder: `models/text_encoders/{text_encoder}`
- VAE: `models/vae/{vae}`
"""

SEARCH = """## Search head patterns, sample with them

**Search Head Patterns** samples *your* model on *your* prompt, tries patterns on every head of every layer in every
step, and keeps what loses little (the method of Sparse-vDiT). **FPSAttention (Wan)** runs the table that it finds, and
**FPSAttention Report** shows what every head did.

1. Set `budget`, the mean cost in percent of full attention. `dense_steps` keeps the first steps dense.
2. Queue. The search runs once and is kept while its inputs stay the same; the table is saved in the folder
   `fpsattention` of the output folder.
3. Later put **Load Head Patterns** with that file in place of the search.

**This takes long:** about ten videos of this size before your own; the log says how long. Begin with a smaller or
shorter video, or set `candidates` to paper.

- Model: `models/diffusion_models/{model}`
- Text encoder: `models/text_encoders/{text_encoder}`
- VAE: `models/vae/{vae}`
"""

FOUR_BITS = """## Wan2.1 in 4 bits, with a LoRA for every noise level

**Load MSFP Wan** reads a model whose linear layers are packed in 4 bits and unpacks them one by one as they are used.
**Timestep-aware LoRA** adds what the rounding took away: a file with several LoRAs per layer, of which the one for the
current noise level acts. Its text says which one acts when, and whether it was made for this model.

1. Neither file is published: make them with this pack's trainer (`python -m training.quantize`, then a run with
   `[talora]`) and choose them in the two nodes.
2. 4-bit model: `models/diffusion_models/{model}`
3. Timestep-aware LoRA: `models/loras/{lora}`
4. Text encoder: `models/text_encoders/{text_encoder}`
5. VAE: `models/vae/{vae}`

To see what the LoRA does, set *control after generate* of **KSampler** to `fixed`, queue, set the LoRA's `strength` to
0, queue again. A schedule in the model file is applied; **FPSAttention Report** shows what every step ran.
"""
