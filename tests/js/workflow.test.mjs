// What the editor takes from a workflow: only what its nodes agree on.
import assert from "node:assert/strict";
import { test } from "node:test";

import { viewFrom } from "../../nodes/web/editor/workflow.js";

const node = (type, values, more = {}) =>
  ({ type, widgets: Object.entries(values).map(([name, value]) => ({ name, value })), ...more });
const LATENT = node("EmptyHunyuanLatentVideo", { width: 1280, height: 720, length: 81, batch_size: 1 });
const SAMPLER = node("KSampler", { seed: 1, steps: 10, cfg: 6, sampler_name: "euler", scheduler: "simple", denoise: 1 });
const SHIFT = node("ModelSamplingSD3", { shift: 8 });

test("size, frames, steps and shift", () => {
  assert.deepEqual(viewFrom([LATENT, SAMPLER, SHIFT, { type: "Note" }]),
    { width: 1280, height: 720, frames: 81, steps: 10, shift: 8 });
  assert.deepEqual(viewFrom([]), {});
});

test("what nodes disagree on, or get over a link, is left out", () => {
  const other = node("WanImageToVideo", { width: 832, height: 720, length: 81 });
  assert.deepEqual(viewFrom([LATENT, other]), { height: 720, frames: 81 });
  assert.deepEqual(viewFrom([LATENT, SAMPLER], (each, name) => name === "width" || name === "steps"),
    { height: 720, frames: 81 });
});

test("nodes that do not run, our own, and pictures' sizes say nothing", () => {
  assert.deepEqual(viewFrom([{ ...LATENT, mode: 4 }, { ...SAMPLER, mode: 2 }]), {});
  assert.deepEqual(viewFrom([node("FPSAttentionPreview", { width: 16, height: 16, frames: 1, steps: 3, shift: 2 })]), {});
  assert.deepEqual(viewFrom([node("ImageScale", { width: 64, height: 64 }), node("Mine", { steps: 7 })]), {});
  assert.deepEqual(viewFrom([node("EmptyHunyuanLatentVideo", { width: "x", height: 64, length: 5 })]),
    { height: 64, frames: 5 });
});
