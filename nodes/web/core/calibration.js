// Expected milliseconds from what was measured on a card: the same rule as kernels/calibration.py.

/** One measured series; `points` are [density, ms] in ascending order.
 * @typedef {{card: string, backend: string, attention: string, granularity: string | null, slots: number,
 *   tile: number[], head_dim: number, tokens: number, heads: number, pattern: string, points: number[][],
 *   dense_ms: number | null, dense_backend: string | null, measured: string}} Entry */
/** @typedef {{ms: number, denseMs: number | null, entry: Entry, scaled: boolean}} Estimate */
/** What is asked for. @typedef {{card: string, tokens: number, heads: number, headDim: number, attention: string,
 *   granularity: string | null, density: number, pattern?: string, backend?: string | null, slots?: number | null,
 *   tile?: number[] | null, anySize?: boolean}} Call */
/** What runs each kind of sparse attention, null where that stays dense; null as a whole where it is not known.
 * @typedef {Record<string, string | null> | null} Backends */

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

// Beyond this ratio of tokens, up or down, launch and overhead count, and a measurement says nothing.
const REACH = 4;

/** Whether times of `measured` tokens say anything about `wanted` ones.
 * @param {number} measured @param {number} wanted @returns {boolean} */
export const isNear = (measured, wanted) => measured <= REACH * wanted && wanted <= REACH * measured;

/** The expected milliseconds of one attention call, or null where nothing was measured that fits. With `anySize` also
 * what was measured at another size, which is no estimate.
 * @param {Entry[]} entries @param {Call} call @returns {Estimate | null} */
export function milliseconds(entries, call) {
  const { card, tokens, heads, headDim, attention, granularity, density, pattern = "window" } = call;
  const { backend = null, slots = null, tile = null, anySize = false } = call;
  const dense = attention === "dense";
  let found = entries.filter((e) => e.card === card && e.head_dim === headDim && (anySize || isNear(e.tokens, tokens)));
  /** Only those, if there are any. */
  const prefer = (fits) => {
    const some = found.filter(fits);
    if (some.length) found = some;
  };
  if (dense) {
    found = found.filter((e) => e.dense_ms !== null);
  } else {
    found = found.filter((e) => e.pattern === pattern && e.attention === attention);
    if (backend === null) prefer((e) => e.backend !== "reference");
    else found = found.filter((e) => e.backend === backend);
    prefer((e) => e.granularity === granularity);
    prefer((e) => e.slots === slots);
  }
  if (!found.length || tokens < 1 || heads < 1) return null;
  const distance = (e) => Math.abs(Math.log(tokens / e.tokens));
  const sameTile = (e) => Number(!dense && tile !== null && String(e.tile) === String(tile));
  const nearer = (a, b) => distance(a) - distance(b) || sameTile(b) - sameTile(a) ||
    (a.measured < b.measured ? 1 : -(a.measured > b.measured));
  const best = found.reduce((a, b) => (nearer(b, a) <= 0 ? b : a)); // of equals the last in the file
  const scale = ((tokens / best.tokens) ** 2 * heads) / best.heads;
  const denseMs = best.dense_ms === null ? null : best.dense_ms * scale;
  return {
    ms: dense ? denseMs : interpolate(best.points, density) * scale,
    denseMs,
    entry: best,
    scaled: best.tokens !== tokens || best.heads !== heads,
  };
}

/** What a run's self-attention takes, sparse and dense, in seconds, with one pass over the model's layers per step;
 * null without a card or where a step has no estimate: the same rule as kernels/expected.py. With `anySize` these are
 * no seconds to show, but say whether it is only the size that was not measured.
 * @param {Entry[]} entries @param {string | null} card @param {import("./schedule.js").Phase[]} phases
 * @param {import("./outlook.js").Step[]} steps
 * @param {{tokens: number, heads: number, layers: number, headDim?: number, slots?: number, tile?: number[]}} model
 * @param {Backends} [backends] @param {boolean} [anySize]
 * @returns {{seconds: number, denseSeconds: number | null, steps: number[], entry: Entry, ran: string[],
 *   scaled: boolean, staysDense: boolean} | null} */
export function runSeconds(entries, card, phases, steps, model, backends = null, anySize = false) {
  if (card === null || !steps.length) return null;
  const { tokens, heads, layers, headDim = 128, slots, tile } = model;
  const common = { card, tokens, heads, headDim, slots, tile, anySize };
  const dense = milliseconds(entries, { ...common, attention: "dense", granularity: null, density: 1 });
  const found = [], sparse = [];
  let staysDense = false;
  for (const step of steps) {
    const phase = phases[step.phase];
    const backend = backends?.[phase.attention] ?? null;
    let estimate = dense;
    if (step.attention !== "dense" && backends !== null && backend === null) {
      staysDense = true;
    } else if (step.attention !== "dense") {
      if (step.density === null) return null;
      // Without FP8 in the backend it is measured, and kept, as attention without FP8.
      const { attention, granularity } = backend === "triton-bf16" ? { attention: "bf16", granularity: null } : phase;
      estimate = milliseconds(entries, { ...common, attention, granularity, density: step.density, backend });
      sparse.push(estimate);
    }
    if (!estimate) return null;
    found.push(estimate);
  }
  const each = found.map((estimate) => (estimate.ms * layers) / 1000);
  const [{ entry }] = sparse.length ? sparse : found;
  return {
    seconds: each.reduce((sum, seconds) => sum + seconds, 0),
    denseSeconds: dense && (dense.ms * layers * steps.length) / 1000,
    steps: each,
    entry,
    ran: sparse.length ? [...new Set(sparse.map((estimate) => estimate.entry.backend))] : [String(entry.dense_backend)],
    scaled: found.some((estimate) => estimate.scaled),
    staysDense,
  };
}

/** Whether there are sparse steps and this card runs all of them dense.
 * @param {import("./outlook.js").Step[]} steps @param {Backends} backends @returns {boolean} */
export function allStayDense(steps, backends) {
  const kinds = steps.map((step) => step.attention).filter((kind) => kind !== "dense");
  return backends !== null && kinds.length > 0 && kinds.every((kind) => (backends[kind] ?? null) === null);
}

const round = (value) => Math.floor(value + 0.5);

function tenths(value) {
  if (value < 0.05) return value ? "<0.1" : "0";
  return value < 9.95 ? value.toFixed(1) : round(value).toLocaleString("en-US");
}

/** A unit's place in the list of units, its seconds, those of the unit below, how many there are before the next. */
const UNITS = [[2, 60, 1, 60], [3, 3600, 60, 24], [4, 86400, 3600, Infinity]];

/** Seconds as a person would write them: "12 ms", "4.6 s", "1 min 40 s", "105 d"; the same rule as in Python.
 * @param {number} seconds @param {string[]} [units] the five units in another language @returns {string} */
export function shortTime(seconds, units = ["ms", "s", "min", "h", "d"]) {
  if (seconds < 0.9995) return `${tenths(seconds * 1000)} ${units[0]}`;
  if (seconds < 59.5) return `${tenths(seconds)} ${units[1]}`;
  for (const [unit, size, part, most] of UNITS) {
    const parts = round(seconds / part), large = Math.floor(parts / (size / part)), small = parts % (size / part);
    if (large < 10) return `${large} ${units[unit]}${small ? ` ${small} ${units[unit - 1]}` : ""}`;
    if (round(seconds / size) < most) return `${round(seconds / size).toLocaleString("en-US")} ${units[unit]}`;
  }
  return "";
}

/** What a time is to another that is `ratio` times as long: how many times faster or slower, or about the same.
 * @param {number} ratio @returns {{kind: "faster" | "slower" | "same", times: string}} */
export function pace(ratio) {
  const times = ratio >= 1 ? ratio : 1 / ratio;
  if (times < 1.05) return { kind: "same", times: "1" };
  return { kind: ratio >= 1 ? "faster" : "slower", times: tenths(times) };
}
