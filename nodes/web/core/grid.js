// Token grids and their 3D tiles: the same choices as kernels/grid.py, for a video without extra tokens.

/** Tokens along time, height and width.
 * @typedef {{t: number, h: number, w: number}} Grid */
/** A grid cut into tiles: `pieces` and the largest `tile` along (t, h, w).
 * @typedef {{grid: Grid, pieces: number[], tile: number[], slots: number, runs: boolean}} Tiling */

export const SLOTS = 64;
export const FULL_RUN_SLOTS = 128;
const TILE_REUSE_TOLERANCE = 1.015;
const UNEVEN_COST = 1.06;
const SHAPE_COST = 1.5;
const MAX_TILE_FRAMES = 7;
const MAX_TILE_ASPECT = 2.5;

/** A grid or a tile that cannot exist. */
export class GridError extends Error {}

/** @param {Grid} grid @returns {number} */
export const tokensOf = (grid) => grid.t * grid.h * grid.w;

/** Lengths of the pieces that split `length`; they differ by at most one.
 * @param {number} length @param {number} pieces @returns {number[]} */
export function splitLengths(length, pieces) {
  const bound = (i) => Math.floor((i * length) / pieces);
  return Array.from({ length: pieces }, (_, i) => bound(i + 1) - bound(i));
}

function candidates(shape, slots) {
  const [t, h, w] = shape;
  const found = new Map();
  for (let a = 1; a <= Math.min(t, slots); a++) {
    for (let b = 1; b <= Math.min(h, Math.floor(slots / a)); b++) {
      for (let c = 1; c <= Math.min(w, Math.floor(slots / (a * b))); c++) {
        const pieces = [Math.ceil(t / a), Math.ceil(h / b), Math.ceil(w / c)];
        found.set(pieces.join(), { pieces, tile: shape.map((length, i) => Math.ceil(length / pieces[i])) });
      }
    }
  }
  return [...found.values()];
}

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

function compareRanks(a, b) {
  const at = a.findIndex((value, i) => value !== b[i]);
  return at < 0 ? 0 : a[at] - b[at];
}

/** The latest choices: every phase and every redraw asks for the same one.
 * @type {Map<string, Tiling>} */
const chosen = new Map();
const MOST_CHOSEN = 32;

/** The tiling of `grid` with the fewest slots, preferring uniform, not frame-thin, nearly square tiles. `tile` is the
 * tile a model was trained with, kept while its slots are within 1.5 % of the best. Equal calls give the same object.
 * @param {Grid} grid @param {number} [slots] @param {number[] | null} [tile] @returns {Tiling}
 * Throws GridError. */
export function chooseTiling(grid, slots = SLOTS, tile = null) {
  const key = [grid.t, grid.h, grid.w, slots, tile].join();
  const known = chosen.get(key);
  if (known) return known;
  const tiling = findTiling(grid, slots, tile);
  if (chosen.size >= MOST_CHOSEN) chosen.delete(chosen.keys().next().value);
  chosen.set(key, tiling);
  return tiling;
}

function findTiling(grid, slots, tile) {
  if (slots < 1) throw new GridError(`a tile needs at least one slot, got ${slots}.`);
  if (tile && (tile.length !== 3 || Math.min(...tile) < 1 || product(tile) > slots)) {
    throw new GridError(`a tile has three extents with at most ${slots} tokens in all, got (${tile.join(", ")}).`);
  }
  const shape = [grid.t, grid.h, grid.w];
  const all = candidates(shape, slots);
  const shaped = ({ tile: [t, h, w] }) =>
    t <= MAX_TILE_FRAMES && Math.max(h, w) <= MAX_TILE_ASPECT * Math.min(h, w);
  const cost = ({ pieces }) =>
    product(pieces) * (shape.some((length, i) => length % pieces[i]) ? UNEVEN_COST : 1);
  const least = (group) => Math.min(...group.map(cost));
  let pool = all.filter(shaped);
  let cheapest = least(all);
  if (least(pool) <= cheapest * SHAPE_COST) cheapest = least(pool);
  else pool = all; // on small or thin grids well-shaped tiles are nearly empty
  const rank = (candidate) => {
    const [t, h, w] = candidate.tile;
    return [Number(t < Math.min(2, grid.t)), Math.max(h, w) / Math.min(h, w), cost(candidate), -t, -w];
  };
  const best = pool
    .filter((candidate) => cost(candidate) <= cheapest * TILE_REUSE_TOLERANCE)
    .map((candidate) => ({ candidate, rank: rank(candidate) }))
    .reduce((a, b) => (compareRanks(b.rank, a.rank) < 0 ? b : a)).candidate;
  const made = (pieces) => ({
    grid, pieces, slots, runs: false, tile: shape.map((length, i) => Math.max(...splitLengths(length, pieces[i]))),
  });
  if (tile) {
    const trained = shape.map((length, i) => Math.ceil(length / tile[i]));
    if (product(trained) <= product(best.pieces) * TILE_REUSE_TOLERANCE) return made(trained);
  }
  return made(best.pieces);
}

/** The sequence cut into plain runs of at most `slots` tokens: the layout of a full list.
 * @param {Grid} grid @param {number} [slots] @returns {Tiling} */
export function runTiling(grid, slots = FULL_RUN_SLOTS) {
  const tokens = tokensOf(grid);
  const runs = Math.ceil(tokens / slots);
  return { grid, pieces: [1, 1, runs], tile: [1, 1, Math.min(slots, tokens)], slots, runs: true };
}
