// Editing operations on phases: every one returns new rows and leaves the given ones alone. A row is a phase with the
// user's comments: `above` holds whole comment lines before it, `beside` the comment at its end.

import { MAX_PHASES } from "./known.js";
import { progressAt, sigmaAt } from "./outlook.js";
import { HEAD, formatRow } from "./schedule.js";
import { splitLines, strip } from "./python.js";

/** @typedef {import("./schedule.js").Phase & {above?: string[], beside?: string}} Row */

/** The beginnings of the two comments that `HEAD` writes anew. */
const OWN_HEAD = /^#\s*(fps-schedule\s+v1\b(,\s*unit\s+sigma\b)?|until\s+attention\s+granularity\s+window\b(\s+t\s+h\s+w\b)?)/;

/** A comment without what `HEAD` writes anew; empty if that was all. */
function ownOf(comment) {
  const head = OWN_HEAD.exec(comment);
  const rest = head ? strip(comment.slice(head[0].length)) : comment;
  return head && rest ? `# ${rest}` : rest;
}

/** Rows of a text that parses: its phases with the comments that belong to them. JSON has no comments.
 * @param {string} text @param {import("./schedule.js").Phase[]} phases @returns {Row[]} */
export function rowsOf(text, phases) {
  const rows = phases.map((phase) => ({ ...phase, above: [], beside: "" }));
  if ("{[".includes(strip(text)[0])) return rows;
  let next = 0;
  let waiting = [];
  for (const line of splitLines(text.replace(/^\ufeff/, ""))) {
    const cut = line.indexOf("#");
    const comment = cut < 0 ? "" : strip(line.slice(cut));
    if (strip(cut < 0 ? line : line.slice(0, cut))) {
      Object.assign(rows[next++], { above: waiting, beside: comment });
      waiting = [];
    } else if (ownOf(comment)) waiting.push(ownOf(comment));
  }
  if (waiting.length) rows.at(-1).below = waiting;
  return rows;
}

/** The canonical table with the rows' comments.
 * @param {Row[]} rows @returns {string} */
export function formatRows(rows) {
  const lines = [...HEAD];
  for (const row of rows) {
    lines.push(...(row.above ?? []));
    lines.push(row.beside ? `${formatRow(row)}  ${row.beside}` : formatRow(row));
  }
  return [...lines, ...(rows.at(-1)?.below ?? []), ""].join("\n");
}

/** Rows with some of one row's columns changed.
 * @param {Row[]} rows @param {number} index @param {Partial<Row>} change @returns {Row[]} */
export const withRow = (rows, index, change) =>
  rows.map((row, i) => (i === index ? completed({ ...row, ...change }) : row));

/** A row whose columns fit its attention: dense has none, and the others need a window or a selector. */
function completed(row) {
  if (row.attention === "dense") return { ...row, granularity: null, window: null, selector: null };
  const granularity = row.attention === "bf16" ? null : (row.granularity ?? "x1");
  const window = row.selector === null ? (row.window ?? [null, "60%", "60%"]) : null;
  return { ...row, granularity, window };
}

/** Rows with the contents of two places exchanged step by step from one to the other; the ends stay where they are.
 * @param {Row[]} rows @param {number} from @param {number} to @returns {Row[]} */
export function moved(rows, from, to) {
  if (to < 0 || to >= rows.length || from === to) return rows;
  const ends = rows.map((row) => row.until);
  const order = [...rows];
  order.splice(to, 0, ...order.splice(from, 1));
  return settled(order.map((row, i) => ({ ...row, until: ends[i] })));
}

/** Rows without one; the neighbors close the gap, and the last still ends at 0.
 * @param {Row[]} rows @param {number} index @returns {Row[]} */
export function removed(rows, index) {
  if (rows.length < 2) return rows;
  const rest = rows.filter((_, i) => i !== index);
  return settled(rest.map((row, i) => (i === rest.length - 1 ? { ...row, until: 0 } : row)));
}

/** Comments below the table stay below it whichever row is last. */
function settled(rows) {
  const below = rows.flatMap((row) => row.below ?? []);
  return rows.map((row, i) => ({ ...row, below: i === rows.length - 1 ? below : [] }));
}

/** Rows with one split in the middle of its part of a run; the new row is the upper half. The same rows come back where
 * there is no room.
 * @param {Row[]} rows @param {number} index @param {number} shift @returns {Row[]} */
export function split(rows, index, shift) {
  const top = index ? rows[index - 1].until : 1;
  const until = between(top, rows[index].until, shift);
  if (rows.length >= MAX_PHASES || until === null) return rows;
  const upper = { ...rows[index], until, above: [], beside: "", below: [] };
  return [...rows.slice(0, index), upper, ...rows.slice(index)];
}

/** The roundest number strictly between two ends, near the middle of their part of a run. */
function between(top, bottom, shift) {
  const middle = sigmaAt((progressAt(top, shift) + progressAt(bottom, shift)) / 2, shift);
  for (const digits of [2, 3, 4, 5]) {
    const value = Number(middle.toFixed(digits));
    if (value < top && value > bottom) return value;
  }
  return null;
}

/** The interval that an end may take, open at both sides: null for the last, which stays at 0, and for none at all, as
 * when the text has become shorter while one of its ends was being dragged.
 * @param {Row[]} rows @param {number} index @returns {[number, number] | null} [above 0-based neighbor, below] */
export function roomOf(rows, index) {
  if (index >= rows.length - 1) return null;
  return [index ? rows[index - 1].until : 1, rows[index + 1].until];
}
