// What a schedule comes to on a video before anything is sampled: the same numbers as kernels/outlook.py.

import { GridError, chooseTiling, tokensOf } from "./grid.js";
import { ARGUMENTS } from "./known.js";
import { windowDensity } from "./patterns.js";
import { isFull, phaseAt } from "./schedule.js";

const FRAMES_PER_TOKEN = 4;
const MAX_TOKENS = 2_000_000;

/** One step of a run; `density` is 1 when dense and null where a head table or the run itself decides, `about` then what
 * the phase's numbers say of it, else the same.
 * @typedef {{index: number, sigma: number, phase: number, attention: string, density: number | null,
 *   about: number | null}} Step */

/** The token grid of a video, as the host makes it; `pixels` is the side of a token: 16, or 32 for Wan2.2 5B.
 * @param {number} width @param {number} height @param {number} frames @param {number} [pixels]
 * @returns {import("./grid.js").Grid}
 * Throws GridError. */
export function videoGrid(width, height, frames, pixels = 16) {
  for (const [name, value] of Object.entries({ width, height, frames })) {
    if (value < 1) throw new GridError(`a video has at least one pixel and one frame, got ${name} ${value}.`);
  }
  const latent = Math.floor(pixels / 2);
  const side = (n) => Math.ceil(Math.max(1, Math.floor(n / latent)) / 2);
  const grid = { t: Math.floor((frames - 1) / FRAMES_PER_TOKEN) + 1, h: side(height), w: side(width) };
  if (tokensOf(grid) > MAX_TOKENS) {
    throw new GridError(`${width} x ${height} x ${frames} frames are ${tokensOf(grid)} tokens, at most ${MAX_TOKENS} ` +
      "are planned; choose a smaller video.");
  }
  return grid;
}

/** The steps + 1 sigmas of a run from 1 to 0: equal parts of the trajectory under Wan's shift.
 * @param {number} steps @param {number} shift @returns {number[]} */
export function samplerSigmas(steps, shift) {
  return Array.from({ length: steps + 1 }, (_, i) => {
    const u = 1 - i / steps;
    return (shift * u) / (1 + (shift - 1) * u);
  });
}

/** How far a run has come (0 at its start, 1 at its end) when it reaches `sigma`: the inverse of `samplerSigmas`.
 * @param {number} sigma @param {number} shift @returns {number} */
export const progressAt = (sigma, shift) => 1 - sigma / (shift - (shift - 1) * sigma);

/** The sigma at such a progress.
 * @param {number} progress @param {number} shift @returns {number} */
export function sigmaAt(progress, shift) {
  const u = 1 - progress;
  return (shift * u) / (1 + (shift - 1) * u);
}

/** Density of a phase on a grid, or null where a selector's word stands in place of a window.
 * @param {import("./schedule.js").Phase} phase @param {import("./grid.js").Grid} grid @param {number} [slots]
 * @param {number[] | null} [tile] @returns {number | null} */
export function phaseDensity(phase, grid, slots, tile) {
  if (isFull(phase)) return 1;
  if (phase.selector !== null) return null;
  return windowDensity(phase.window, chooseTiling(grid, slots, tile));
}

/** About what share of attention a selector computes, where one of its numbers says so, else null.
 * @param {import("./schedule.js").Phase} phase @returns {number | null} */
export function aboutDensity(phase) {
  const [word, ...numbers] = phase.selector?.split(" ") ?? [];
  const at = word ? ARGUMENTS[word].findIndex((argument) => argument.density) : -1;
  return at < 0 ? null : Number(numbers[at]);
}

/** Every step of a run whose steps start at `sigmas` (without the final zero).
 * @param {import("./schedule.js").Phase[]} phases @param {import("./grid.js").Grid} grid @param {number[]} sigmas
 * @param {number} [slots] @param {number[] | null} [tile] @returns {Step[]} */
export function stepOutlooks(phases, grid, sigmas, slots, tile) {
  const densities = phases.map((phase) => phaseDensity(phase, grid, slots, tile));
  return sigmas.map((sigma, index) => {
    const phase = phaseAt(phases, sigma);
    const density = densities[phase];
    const about = density ?? aboutDensity(phases[phase]);
    return { index, sigma, phase, attention: phases[phase].attention, density, about };
  });
}

/** Self-attention work of a run relative to a dense one: the mean density of its steps; null if that is not known.
 * @param {Step[]} steps @param {"density" | "about"} [by] "about" for an estimate @returns {number | null} */
export function attentionWork(steps, by = "density") {
  if (!steps.length || steps.some((step) => step[by] === null)) return null;
  return steps.reduce((sum, step) => sum + step[by], 0) / steps.length;
}
