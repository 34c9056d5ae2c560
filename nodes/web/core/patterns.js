// Windows of tiles: the same rule as kernels/patterns.py.

import { splitLengths } from "./grid.js";

/** How many tiles an extent covers along one axis.
 * @param {import("./schedule.js").Extent} extent @param {number} pieces @param {number} largest longest piece
 * @returns {number} */
export function tilesAlong(extent, pieces, largest) {
  if (extent === null) return pieces;
  if (typeof extent === "string") {
    // The small number keeps 60 % of 5 pieces at 3 despite binary fractions.
    return Math.max(1, Math.min(pieces, Math.ceil((pieces * Number(extent.slice(0, -1))) / 100 - 1e-9)));
  }
  return Math.min(pieces, Math.ceil(extent / largest));
}

/** The window in tiles along (t, h, w).
 * @param {import("./schedule.js").Extent[]} window @param {import("./grid.js").Tiling} tiling @returns {number[]} */
export const windowTiles = (window, tiling) =>
  window.map((extent, axis) => tilesAlong(extent, tiling.pieces[axis], tiling.tile[axis]));

/** First piece that piece `i` of `n` sees when every piece sees `k`.
 * @param {number} i @param {number} n @param {number} k @returns {number} */
export const bandStart = (i, n, k) => Math.max(0, Math.min(n - k, i - Math.floor(k / 2)));

/** Share of (query, key) token pairs that a window computes; a window is the same along every axis, so the share is a
 * product of the three axes' shares.
 * @param {import("./schedule.js").Extent[]} window @param {import("./grid.js").Tiling} tiling @returns {number} */
export function windowDensity(window, tiling) {
  const shape = [tiling.grid.t, tiling.grid.h, tiling.grid.w];
  return windowTiles(window, tiling).reduce((share, k, axis) => {
    const n = tiling.pieces[axis];
    const lengths = splitLengths(shape[axis], n);
    let pairs = 0;
    for (let i = 0; i < n; i++) {
      const start = bandStart(i, n, k);
      for (let j = start; j < start + k; j++) pairs += lengths[i] * lengths[j];
    }
    return (share * pairs) / shape[axis] ** 2;
  }, 1);
}
