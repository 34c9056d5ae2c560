// The schedule as text: the same reader, writer and error sentences as kernels/schedule.py.

import { JsonError, JsonTooLarge, readJson } from "./json.js";
import { ARGUMENTS, ATTENTIONS, GRANULARITIES, MAX_PHASES, MAX_WORD, SELECTORS, VERSION } from "./known.js";
import {
  SPACE_CLASS, codePoints, compareText, floatPlain, floatRepr, floatShort, placedWords, repr, splitLines, str, strip,
  typeName, words,
} from "./python.js";

/** Extent of a window along one axis: latent tokens, a share such as "60%", or null for all of it.
 * @typedef {number | string | null} Extent */
/** One stretch of the denoising trajectory, down to sigma `until`.
 * @typedef {{until: number, attention: string, granularity: string | null, window: Extent[] | null,
 *   selector: string | null}} Phase */

const SIGMA_TOLERANCE = 1e-6;
const NUMBER = /^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$/;
const HEADER = new RegExp(
  `^[${SPACE_CLASS}]*fps-schedule[${SPACE_CLASS}]+v([^${SPACE_CLASS},;]+)` +
    `(?:[^\\p{L}\\p{N}_]+unit[${SPACE_CLASS}]+([^${SPACE_CLASS}]+))?`, "u");

/** A schedule that cannot be used; the message is one sentence with the place and the fix. */
export class ScheduleError extends Error {}

/** Read a table, or JSON if it starts with `{` or `[`.
 * @param {unknown} text @returns {Phase[]}
 * Throws ScheduleError. */
export function parse(text) {
  if (typeof text !== "string") {
    throw new ScheduleError(`a schedule is text, got ${typeName(text)}; choose a preset or write a table.`);
  }
  const body = text.startsWith("\ufeff") ? text.slice(1) : text;
  const stripped = strip(body);
  if (!stripped) throw new ScheduleError("the schedule is empty; choose a preset or write at least '0.00 dense'.");
  return "{[".includes(stripped[0]) ? parseJson(stripped) : parseTable(body);
}

/** The header lines of the canonical table. */
export const HEAD = [`# fps-schedule v${VERSION}, unit sigma`, "# until   attention   granularity   window t h w"];

/** One row of the canonical table.
 * @param {Phase} phase @returns {string} */
export function formatRow(phase) {
  const head = `  ${formatNumber(phase.until).padEnd(7)} ${phase.attention.padEnd(11)}`;
  if (phase.attention === "dense") return head.trimEnd();
  return `${head} ${(phase.granularity ?? "-").padEnd(13)} ${windowText(phase)}`;
}

/** The canonical table.
 * @param {Phase[]} phases @returns {string} */
export const format = (phases) => [...HEAD, ...phases.map(formatRow), ""].join("\n");

/** What stands in the pattern column.
 * @param {Phase} phase @returns {string} */
export const windowText = (phase) =>
  phase.selector ?? phase.window.map((extent) => (extent === null ? "all" : String(extent))).join(" ");

/** @param {number} value @returns {string} */
export function formatNumber(value) {
  const short = value.toFixed(2);
  return Number(short) === value ? short : floatRepr(value);
}

/** Index of the phase that holds `sigma`.
 * @param {Phase[]} phases @param {number} sigma @returns {number} */
export function phaseAt(phases, sigma) {
  const index = phases.findIndex((phase) => sigma >= phase.until - SIGMA_TOLERANCE);
  return index < 0 ? phases.length - 1 : index;
}

/** True if every token sees every token.
 * @param {Phase} phase @returns {boolean} */
export const isFull = (phase) =>
  phase.attention === "dense" || (phase.window !== null && phase.window.every((extent) => extent === null));

function phaseOf(until, attention, granularity = null, window = null, selector = null) {
  return { until, attention, granularity, window, selector };
}

function checkOrder(untils) {
  if (!untils.length) throw new ScheduleError("the schedule has no phase; write at least '0.00 dense'.");
  if (untils.length > MAX_PHASES) {
    throw new ScheduleError(
      `the schedule has ${untils.length} phases, at most ${MAX_PHASES} are allowed; merge some.`);
  }
  let previous = Infinity;
  for (const [until, place] of untils) {
    const value = floatShort(until);
    if (!(until >= 0 && until <= 1)) {
      throw new ScheduleError(`${place}: 'until' is ${value}, but sigma runs from 1 down to 0.`);
    }
    if (until >= previous) {
      throw new ScheduleError(`${place}: 'until' is ${value} after ${floatShort(previous)}; ` +
        "phases run from sigma 1 down, write a smaller one.");
    }
    previous = until;
  }
  if (previous !== 0) {
    throw new ScheduleError(
      `${untils.at(-1)[1]}: the last phase ends at ${floatShort(previous)}; it must end at 0.00.`);
  }
}

function parseTable(text) {
  const phases = [];
  const untils = [];
  splitLines(text).forEach((line, i) => {
    const cut = line.indexOf("#");
    if (cut >= 0) checkComment(line.slice(cut + 1), `line ${i + 1}, column ${[...line.slice(0, cut)].length + 1}`);
    const tokens = placedWords(cut < 0 ? line : line.slice(0, cut));
    if (!tokens.length) return;
    const phase = parseRow(tokens, i + 1);
    phases.push(phase);
    untils.push([phase.until, `line ${i + 1}, column ${tokens[0].column}`]);
  });
  checkOrder(untils);
  return phases;
}

function checkComment(comment, place) {
  const found = HEADER.exec(comment);
  if (!found) return;
  const [, version, unit] = found;
  if (version !== String(VERSION)) {
    throw new ScheduleError(
      `${place}: this is a v${version} schedule, this version reads v${VERSION}; update the node pack.`);
  }
  if (unit !== undefined && unit !== "sigma") {
    throw new ScheduleError(`${place}: the unit is '${unit}', only 'sigma' is understood; convert the ends.`);
  }
}

function parseRow(tokens, line) {
  const fail = (index, message) => {
    const last = tokens.at(-1);
    const column = index < tokens.length ? tokens[index].column : last.column + codePoints(last.word) + 1;
    return new ScheduleError(`line ${line}, column ${column}: ${message}`);
  };
  tokens.forEach(({ word }, index) => {
    const size = codePoints(word);
    if (size > MAX_WORD) {
      const start = [...word].slice(0, 20).join("");
      throw fail(index, `a word of ${size} characters ('${start}...') belongs to no schedule; remove it.`);
    }
  });
  const row = tokens.map((token) => token.word);
  if (!NUMBER.test(row[0])) throw fail(0, `${repr(row[0])} is not a sigma; write a number between 0 and 1.`);
  const until = Number(row[0]) + 0; // a written -0.0 is 0.0
  if (row.length < 2) throw fail(1, `the attention is missing; write one of ${ATTENTIONS.join(", ")}.`);
  const attention = row[1];
  if (!ATTENTIONS.includes(attention)) {
    throw fail(1, `'${attention}' is no attention; write one of ${ATTENTIONS.join(", ")}.`);
  }
  if (attention === "dense") {
    if (row.length > 2) throw fail(2, `'dense' takes no further columns, but '${row[2]}' follows; remove it.`);
    return phaseOf(until, attention);
  }
  if (row.length < 3) {
    const fix = attention === "bf16" ? "-" : GRANULARITIES.join(", ");
    throw fail(2, `the granularity is missing; write ${fix}.`);
  }
  const granularity = readGranularity(attention, row[2], (message) => fail(2, message));
  if (row.length < 4) {
    throw fail(3, "the window is missing; write three extents t h w (tokens, a share such as 60%, or all).");
  }
  if (/^[A-Za-z_]/.test(row[3]) && row[3] !== "all") {
    const selector = readSelector(row.slice(3), (message) => fail(3, message));
    return phaseOf(until, attention, granularity, null, selector);
  }
  if (row.length !== 6) {
    throw fail(Math.min(row.length, 6),
      `a window has three extents t h w, got ${row.length - 3}; write for example 'all 20 60%'.`);
  }
  const window = row.slice(3).map((word, i) => readExtent(word, (message) => fail(i + 3, message)));
  return phaseOf(until, attention, granularity, window);
}

function readGranularity(attention, word, fail) {
  if (attention === "bf16") {
    if (word !== "-" && word !== null) throw fail(`'bf16' has no granularity, got '${str(word)}'; write -.`);
    return null;
  }
  if (!GRANULARITIES.includes(word)) {
    const found = word === null ? "the granularity is missing" : `'${str(word)}' is no granularity`;
    throw fail(`${found}; write one of ${GRANULARITIES.join(", ")}.`);
  }
  return word;
}

function readSelector(row, fail) {
  const [name, ...given] = row;
  if (!SELECTORS.includes(name)) {
    throw fail(`'${name}' is no window; write three extents t h w (tokens, a share such as 60%, or all), ` +
      `or one of ${SELECTORS.join(", ")}.`);
  }
  const wanted = ARGUMENTS[name];
  const least = wanted.filter((argument) => argument.required).length;
  if (given.length < least || given.length > wanted.length) {
    const usage = [name, ...wanted.slice(0, least).map((argument) => argument.example)].join(" ");
    throw fail(`'${name}' takes ${numbers(least, wanted.length)}, got ${given.length}; write for example '${usage}'.`);
  }
  given.forEach((word, i) => {
    const { name: what, low, high, above } = wanted[i];
    const value = /^-?[0-9]{1,9}(\.[0-9]{1,9})?$/.test(word) ? Number(word) : NaN;
    if (value >= low && value <= high && !(above && value === low)) return;
    const bounds = `${above ? "above " : ""}${floatShort(low)} to ${floatShort(high)}`;
    throw fail(`the ${what} of '${name}' is '${word}'; write a number from ${bounds}.`);
  });
  return row.join(" ");
}

function numbers(least, most) {
  if (most === 0) return "no number";
  return least === most ? `${least} number${least === 1 ? "" : "s"}` : `${least} to ${most} numbers`;
}

function readExtent(word, fail) {
  if (word === "all" || word === null) return null;
  const text = str(word);
  if (/^[0-9]+(\.[0-9]+)?%$/.test(text)) {
    const share = Number(text.slice(0, -1));
    if (!(share > 0 && share <= 100)) {
      throw fail(`the extent '${text}' is outside 0-100 %; write a larger share, or all.`);
    }
    return `${floatPlain(share)}%`.replace(".0%", "%");
  }
  if (typeof word === "boolean" || !/^[+-]?[0-9]+$/.test(text)) {
    throw fail(`'${text}' is no extent; write whole latent tokens, a share such as 60%, or all.`);
  }
  if (text.length > 9) throw fail("the extent is larger than any video; write at most 9 digits, or all.");
  if (Number(text) < 1) throw fail(`the extent ${text} is not positive; write at least 1, or all.`);
  return Number(text);
}

function readOrExplain(text) {
  try {
    return readJson(text);
  } catch (error) {
    if (error instanceof JsonError) {
      throw new ScheduleError(
        `line ${error.line}, column ${error.column}: the JSON is broken (${error.problem}); correct it there.`);
    }
    if (error instanceof JsonTooLarge) {
      throw new ScheduleError("the JSON holds a number or a nesting that is too large; write a plain list.");
    }
    throw error;
  }
}

const isOne = (value) => value === 1n || value === 1 || value === true;

function parseJson(text) {
  const data = readOrExplain(text);
  let rows = data;
  if (data instanceof Map) {
    const version = data.has("version") ? data.get("version") : BigInt(VERSION);
    if (!isOne(version)) {
      throw new ScheduleError(
        `'version' is ${repr(version)}, this version reads ${VERSION}; update the node pack.`);
    }
    if (data.has("unit") && data.get("unit") !== "sigma") {
      throw new ScheduleError(`the unit is '${str(data.get("unit"))}', only 'sigma' is understood; convert the ends.`);
    }
    const unknown = smallestOther(data, ["version", "unit", "phases"]);
    if (unknown !== undefined) {
      throw new ScheduleError(`'${unknown}' is no key of a schedule; write version, unit and phases.`);
    }
    rows = data.get("phases");
  }
  if (!Array.isArray(rows)) {
    throw new ScheduleError(
      "the JSON has no list 'phases'; write {\"phases\": [{\"until\": 0, \"attention\": \"dense\"}]}.");
  }
  const phases = rows.map((row, i) => parseJsonRow(row, i + 1));
  checkOrder(phases.map((phase, i) => [phase.until, `phase ${i + 1}`]));
  return phases;
}

const smallestOther = (map, known) => [...map.keys()].filter((key) => !known.includes(key)).sort(compareText)[0];

function parseJsonRow(row, number) {
  const fail = (message) => new ScheduleError(`phase ${number}: ${message}`);
  if (!(row instanceof Map)) throw fail(`expected an object with until and attention, got ${typeName(row)}.`);
  const unknown = smallestOther(row, ["until", "attention", "granularity", "window", "selector"]);
  if (unknown !== undefined) {
    throw fail(`'${unknown}' is no column; write until, attention, granularity, window or selector.`);
  }
  const until = row.get("until") ?? null;
  const attention = row.get("attention") ?? null;
  const numeric = typeof until === "bigint" || typeof until === "number";
  if (!numeric || !(until >= 0 && until <= 1)) {
    throw fail(`'until' is ${repr(until)}; write a number between 0 and 1.`);
  }
  if (!ATTENTIONS.includes(attention)) {
    throw fail(`'attention' is ${repr(attention)}; write one of ${ATTENTIONS.join(", ")}.`);
  }
  if (attention === "dense") {
    const extra = smallestOther(row, ["until", "attention"]);
    if (extra !== undefined) throw fail(`'dense' takes no ${extra}; remove it.`);
    return phaseOf(Number(until) + 0, attention);
  }
  const granularity = readGranularity(attention, row.get("granularity") ?? null, fail);
  if (row.has("selector")) {
    if (row.has("window")) throw fail("both a window and a selector are given; keep one.");
    const found = words(str(row.get("selector")));
    const selector = readSelector(found.length ? found : [""], fail);
    return phaseOf(Number(until) + 0, attention, granularity, null, selector);
  }
  const window = row.get("window") ?? null;
  if (!Array.isArray(window) || window.length !== 3) {
    throw fail(`'window' is ${repr(window)}; write three extents such as ["all", 20, "60%"].`);
  }
  return phaseOf(Number(until) + 0, attention, granularity, window.map((extent) => readExtent(extent, fail)));
}
