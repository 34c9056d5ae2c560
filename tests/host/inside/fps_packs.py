"""Real packs as neighbors, from the folder NEIGHBOR_PACKS: KJNodes, ComfyUI-GGUF, ComfyUI-TeaCache, where they lie."""

from __future__ import annotations

import asyncio
import importlib
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
from fps_common import apply, model_of, relative, run_cases, run_summary, runs, sample, shifted
from fps_tiny import tiny_wan

import nodes

PACKS = Path(os.environ["NEIGHBOR_PACKS"])
SIZE, STEPS = (3, 12, 16), 4
WINDOW = "0.00 bf16 - 1 1 1"
if os.environ.get("NEIGHBOR_LIBRARIES"):
    sys.path.append(os.environ["NEIGHBOR_LIBRARIES"])


# The server imports its package of this name first; later the host puts a folder with a module of that name in front.
sys.modules.pop("utils", None)
sys.path.insert(0, str(Path(nodes.__file__).parent))
importlib.import_module("utils.install_util")
sys.path.pop(0)


def _load(folder: str) -> str | None:
    """Load a pack; return why it is not there, or None."""
    if not (PACKS / folder).is_dir():
        return f"{folder} is not in NEIGHBOR_PACKS"
    loaded = asyncio.run(nodes.load_custom_node(str(PACKS / folder), module_parent="custom_nodes"))
    return None if loaded else f"{folder} does not import on this host"


def _node(name: str) -> Any:
    return nodes.NODE_CLASS_MAPPINGS[name]


def _both(neighbor: Any, model: Any = None, **options: Any) -> dict:
    model = model or shifted(model_of())
    alone = sample(neighbor(model), size=SIZE, steps=STEPS, **options)
    found, latents = {}, []
    for order in ("before", "after"):
        make = (lambda t: apply(neighbor(model), t)) if order == "before" else (lambda t: neighbor(apply(model, t)))
        dense_equal = torch.equal(sample(make("0.00 dense"), size=SIZE, steps=STEPS, **options), alone)
        patched = make(WINDOW)
        latents.append(sample(patched, size=SIZE, steps=STEPS, **options))
        steps = run_summary(runs(patched)[-1])["steps"]
        found[order] = {
            "dense_equal": dense_equal,
            "finite": bool(latents[-1].isfinite().all()),
            "changed": relative(latents[-1], alone),
            "sparse": sum(step["sparse"] for step in steps),
            "dense": sum(step["dense"] for step in steps),
            "reasons": sorted({reason for step in steps for reason in step["reasons"]}),
        }
    return found | {"orders_differ": relative(latents[0], latents[1])}


def case_kjnodes_sage():
    """Its node that assigns the override; the library itself needs a GPU, so torch computes in its place."""
    library = types.ModuleType("sageattention")
    library.__spec__ = importlib.machinery.ModuleSpec("sageattention", None)

    def sageattn(q, k, v, attn_mask=None, is_causal=False, tensor_layout="HND", **_):
        if tensor_layout == "NHD":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return out.transpose(1, 2) if tensor_layout == "NHD" else out

    library.sageattn = sageattn
    sys.modules["sageattention"] = library
    if reason := _load("ComfyUI-KJNodes"):
        return reason
    return _both(lambda model: _node("PathchSageAttentionKJ")().patch(model, "auto")[0])


def case_kjnodes_enhance():
    """Its forward for every self_attn, which goes through the host's attention."""
    if reason := _load("ComfyUI-KJNodes"):
        return reason
    latent = {"samples": torch.zeros(1, 16, *SIZE)}
    return _both(lambda model: _node("WanVideoEnhanceAVideoKJ")().enhance(model, 2.0, latent)[0])


def case_kjnodes_nag():
    """Its forward for every cross_attn."""
    if reason := _load("ComfyUI-KJNodes"):
        return reason
    from fps_common import conditioning

    return _both(lambda model: _node("WanVideoNAG")().patch(model, conditioning(2), 11.0, 0.25, 2.5)[0])


def case_gguf():
    if reason := _load("ComfyUI-GGUF"):
        return reason
    try:
        import gguf
    except ImportError:
        return "the library gguf is not installed (NEIGHBOR_LIBRARIES)"
    import tempfile

    import folder_paths

    folder = tempfile.mkdtemp()
    writer = gguf.GGUFWriter(str(Path(folder) / "tiny.gguf"), "wan")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in tiny_wan().items():
        data = tensor.numpy()
        if name.startswith("blocks.") and name.endswith("weight") and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            if tensor.ndim > 4:
                writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
                data = data.reshape(tensor.shape[0], -1)
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    folder_paths.add_model_folder_path("diffusion_models", folder)
    folder_paths.folder_names_and_paths["unet_gguf"] = ([folder], {".gguf"})
    model = shifted(_node("UnetLoaderGGUF")().load_unet("tiny.gguf")[0])
    near = relative(sample(model, size=SIZE, steps=STEPS), sample(shifted(model_of()), size=SIZE, steps=STEPS))
    return _both(lambda m: m, model) | {"near": near}


def case_teacache():
    """Its forward runs the blocks without the options: ours stays dense and says so."""
    import comfy.ldm.lightricks.model as lightricks

    # The pack imports a function of another model family that this host no longer has; Wan does not use it.
    if not hasattr(lightricks, "precompute_freqs_cis"):
        lightricks.precompute_freqs_cis = None
    if reason := _load("ComfyUI-TeaCache"):
        return reason

    def cached(model):
        return _node("TeaCache")().apply_teacache(model, "wan2.1_t2v_1.3B", 0.2, 0.0, 1.0, "cpu")[0]

    return _both(cached, cfg=1.0)


run_cases(globals())
