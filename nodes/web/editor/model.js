// What the editor shows, worked out from the text and the view; no page is needed here.

import { allStayDense, runSeconds } from "../core/calibration.js";
import { GridError, SLOTS, chooseTiling, tokensOf } from "../core/grid.js";
import { attentionWork, phaseDensity, samplerSigmas, stepOutlooks, videoGrid } from "../core/outlook.js";
import { rowsOf } from "../core/rows.js";
import { ScheduleError, parse } from "../core/schedule.js";

/** What the picture is drawn for; saved with the workflow, never sent.
 * @typedef {{width: number, height: number, frames: number, steps: number, shift: number, side: number,
 *   heads: number, layers: number}} View */

/** The bounds of every field of a view: whole numbers, except for the shift.
 * @type {Record<keyof View, {least: number, most: number, whole: boolean, value: number}>} */
export const FIELDS = {
  width: { least: 16, most: 16384, whole: true, value: 832 },
  height: { least: 16, most: 16384, whole: true, value: 480 },
  frames: { least: 1, most: 4001, whole: true, value: 81 },
  steps: { least: 1, most: 1000, whole: true, value: 20 },
  shift: { least: 0.01, most: 1000, whole: false, value: 8 },
  side: { least: 16, most: 32, whole: true, value: 16 },
  heads: { least: 1, most: 256, whole: true, value: 12 },
  layers: { least: 1, most: 256, whole: true, value: 30 },
};

/** Wan's sizes: side of a token in pixels, heads, layers. */
export const MODELS = {
  "Wan2.1 1.3B": { side: 16, heads: 12, layers: 30 },
  "Wan 14B": { side: 16, heads: 40, layers: 40 },
  "Wan2.2 5B": { side: 32, heads: 24, layers: 30 },
};

/** What a text says: whole numbers are digits alone, others may have a point. A comma is one only where it cannot
 * separate thousands: "2,5" and "0,125", not "1,000". NaN if it says no number. */
function numberOf(text, whole) {
  if (whole) return /^[0-9]+$/.test(text) ? Number(text) : NaN;
  const plain = /^[1-9][0-9]{0,2},[0-9]{3}$/.test(text) ? text : text.replace(/,(?=[0-9]+$)/, ".");
  return /^([0-9]+\.?|[0-9]*\.[0-9]+)$/.test(plain) ? Number(plain) : NaN;
}

/** A field's value, or null if it is none.
 * @param {keyof View} name @param {unknown} value @returns {number | null} */
export function fieldValue(name, value) {
  const { least, most, whole } = FIELDS[name];
  const number = numberOf(String(value).trim(), whole);
  if (!(number >= least && number <= most)) return null;
  return name === "side" && number !== 16 && number !== 32 ? null : number;
}

const STEPS = { width: 16, height: 16, frames: 4 };

/** The value of a field after an arrow key, or null where there is none; decimals stay as short as they were.
 * @param {keyof View} name @param {string} text @param {1 | -1} by @returns {number | null} */
export function nextValue(name, text, by) {
  const now = fieldValue(name, text);
  if (now === null) return null;
  return fieldValue(name, Math.round((now + by * (STEPS[name] ?? 1)) * 1e6) / 1e6);
}

/** A whole view from whatever a workflow holds; what makes no sense is the default.
 * @param {unknown} saved @returns {View} */
export function viewOf(saved) {
  const given = saved !== null && typeof saved === "object" ? saved : {};
  return Object.fromEntries(
    Object.keys(FIELDS).map((name) => [name, fieldValue(name, given[name]) ?? FIELDS[name].value]));
}

/** Name of the model that a view's numbers belong to, or null.
 * @param {View} view @returns {string | null} */
export function modelName(view) {
  const found = Object.entries(MODELS).find(([, sizes]) =>
    Object.entries(sizes).every(([name, value]) => view[name] === value));
  return found ? found[0] : null;
}

/** @typedef {{rows: import("../core/rows.js").Row[], error: string | null}} Reading */

/** The phases of a text, or the sentence that says why it has none.
 * @param {string} text @returns {Reading} */
export function reading(text) {
  try {
    return { rows: rowsOf(text, parse(text)), error: null };
  } catch (error) {
    if (error instanceof ScheduleError) return { rows: [], error: error.message };
    throw error;
  }
}

/** Everything that follows from phases and a view; `problem` is the sentence for a video that cannot be planned, `open`
 * the selectors whose density is not known before the run.
 * @param {import("../core/rows.js").Row[]} rows @param {View} view
 * @param {{card: string | null, entries: import("../core/calibration.js").Entry[],
 *   backends?: import("../core/calibration.js").Backends}} measured */
export function outlook(rows, view, measured) {
  let grid;
  try {
    grid = videoGrid(view.width, view.height, view.frames, view.side);
  } catch (error) {
    if (error instanceof GridError) return { problem: error.message };
    throw error;
  }
  const steps = stepOutlooks(rows, grid, samplerSigmas(view.steps, view.shift).slice(0, -1));
  const tokens = tokensOf(grid);
  const tiling = chooseTiling(grid, SLOTS);
  const { card, entries, backends = null } = measured;
  const model = { tokens, heads: view.heads, layers: view.layers, slots: SLOTS, tile: tiling.tile };
  const seconds = runSeconds(entries, card, rows, steps, model, backends);
  return {
    problem: null,
    grid,
    tokens,
    tiling,
    steps,
    densities: rows.map((row) => phaseDensity(row, grid)),
    work: attentionWork(steps),
    about: attentionWork(steps, "about"),
    open: [...new Set(steps.filter((step) => step.density === null).map((step) => rows[step.phase].selector))],
    staysDense: allStayDense(steps, backends),
    seconds,
    otherSize: seconds === null && runSeconds(entries, card, rows, steps, model, backends, true) !== null,
  };
}
