// Expected milliseconds from what was measured on a card: the same rule as kernels/calibration.py.

/** One measured series; `points` are [density, ms] in ascending order.
 * @typedef {{card: string, backend: string, attention: string, granularity: string | null, head_dim: number,
 *   tokens: number, heads: number, pattern: string, points: number[][], dense_ms: number | null,
 *   measured: string}} Entry */
/** @typedef {{ms: number, denseMs: number | null, entry: Entry, scaled: boolean}} Estimate */
/** What is asked for. @typedef {{card: string, tokens: number, heads: number, headDim: number, attention: string,
 *   granularity: string | null, density: number, pattern?: string}} Call */

/** Milliseconds at a density from points in ascending order; the ends go on along the outermost segment.
 * @param {number[][]} points @param {number} density @returns {number} */
export function interpolate(points, density) {
  if (points.length === 1) {
    const [d0, m0] = points[0];
    return Math.max(0, d0 > 0 ? (m0 * density) / d0 : m0);
  }
  const found = points.findIndex(([d], i) => i > 0 && d >= density);
  const index = found < 0 ? points.length - 1 : found;
  const [[d0, m0], [d1, m1]] = [points[index - 1], points[index]];
  return Math.max(0, m0 + ((m1 - m0) * (density - d0)) / (d1 - d0));
}

/** The expected milliseconds of one attention call, or null where nothing was measured that fits.
 * @param {Entry[]} entries @param {Call} call @returns {Estimate | null} */
export function milliseconds(entries, call) {
  const { card, tokens, heads, headDim, attention, granularity, density, pattern = "window" } = call;
  let found = entries.filter((e) => e.card === card && e.head_dim === headDim);
  if (attention === "dense") {
    found = found.filter((e) => e.dense_ms !== null);
  } else {
    found = found.filter((e) => e.pattern === pattern && e.attention === attention);
    const same = found.filter((e) => e.granularity === granularity);
    if (same.length) found = same;
  }
  if (!found.length || tokens < 1 || heads < 1) return null;
  const distance = (e) => Math.abs(Math.log(tokens / e.tokens));
  const nearer = (a, b) => distance(a) - distance(b) || (a.measured < b.measured ? 1 : -(a.measured > b.measured));
  const best = found.reduce((a, b) => (nearer(b, a) <= 0 ? b : a)); // of equals the last in the file
  const scale = ((tokens / best.tokens) ** 2 * heads) / best.heads;
  const denseMs = best.dense_ms === null ? null : best.dense_ms * scale;
  return {
    ms: attention === "dense" ? denseMs : interpolate(best.points, density) * scale,
    denseMs,
    entry: best,
    scaled: best.tokens !== tokens || best.heads !== heads,
  };
}

/** What a run's self-attention takes, sparse and dense, in seconds, with one pass over the model's layers per step;
 * null where a step has no estimate.
 * @param {Entry[]} entries @param {string | null} card @param {import("./schedule.js").Phase[]} phases
 * @param {import("./outlook.js").Step[]} steps @param {{tokens: number, heads: number, layers: number}} model
 * @returns {{seconds: number, denseSeconds: number, entry: Entry, scaled: boolean} | null} */
export function runSeconds(entries, card, phases, steps, { tokens, heads, layers }) {
  if (!card || !steps.length) return null;
  const ask = (attention, granularity, density) =>
    milliseconds(entries, { card, tokens, heads, headDim: 128, attention, granularity, density });
  const dense = ask("dense", null, 1);
  if (!dense) return null;
  let total = 0;
  let used = dense;
  for (const step of steps) {
    const phase = phases[step.phase];
    if (step.density === null) return null;
    const estimate = step.attention === "dense" ? dense : ask(phase.attention, phase.granularity, step.density);
    if (!estimate) return null;
    if (step.attention !== "dense") used = estimate;
    total += estimate.ms;
  }
  const perCall = layers / 1000;
  return { seconds: total * perCall, denseSeconds: dense.ms * steps.length * perCall, entry: used.entry,
    scaled: used.scaled };
}
