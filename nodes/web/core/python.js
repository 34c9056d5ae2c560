// Text as Python sees it: what counts as white space and as a line, and how numbers and values are written.
// Error sentences are shared with Python word for word, so these have to agree in every corner.

const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORDS = new RegExp(`[^${SPACE}]+`, "gu");
const EDGES = new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, "gu");
const LINE_END = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/;
const UNPRINTABLE = /[\p{C}\p{Z}]/u;

/** Python's `\s` inside a character class. */
export const SPACE_CLASS = SPACE;

/** Length in code points.
 * @param {string} text @returns {number} */
export const codePoints = (text) => [...text].length;

/** Python's `str.strip()`.
 * @param {string} text @returns {string} */
export const strip = (text) => text.replace(EDGES, "");

/** Python's `str.split()`.
 * @param {string} text @returns {string[]} */
export const words = (text) => text.match(WORDS) ?? [];

/** Words of a line with their columns, counted from 1 in code points.
 * @param {string} line @returns {{word: string, column: number}[]} */
export function placedWords(line) {
  return [...line.matchAll(WORDS)].map((m) => ({ word: m[0], column: codePoints(line.slice(0, m.index)) + 1 }));
}

/** Python's `str.splitlines()`.
 * @param {string} text @returns {string[]} */
export function splitLines(text) {
  const lines = text.split(LINE_END);
  if (lines.at(-1) === "") lines.pop();
  return lines;
}

/** Compare by code points, as Python sorts strings.
 * @param {string} a @param {string} b @returns {number} */
export function compareText(a, b) {
  const [x, y] = [[...a], [...b]];
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const difference = x[i].codePointAt(0) - y[i].codePointAt(0);
    if (difference) return difference;
  }
  return x.length - y.length;
}

/** The digits and the decimal exponent of a positive finite number: 0.00123 is ["123", -3]. */
function scientific(text) {
  const [digits, exponent] = text.split("e");
  return [digits.replace(".", ""), Number(exponent)];
}

function exponentForm(digits, exponent) {
  const size = String(Math.abs(exponent)).padStart(2, "0");
  const fraction = digits.length > 1 ? `.${digits.slice(1)}` : "";
  return `${digits[0]}${fraction}e${exponent < 0 ? "-" : "+"}${size}`;
}

function positional(digits, exponent) {
  if (exponent < 0) return `0.${"0".repeat(-exponent - 1)}${digits}`;
  if (digits.length <= exponent + 1) return digits.padEnd(exponent + 1, "0");
  return `${digits.slice(0, exponent + 1)}.${digits.slice(exponent + 1)}`;
}

function special(value) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value < 0 ? "-inf" : "inf";
  return null;
}

/** Python's `repr(float)`.
 * @param {number} value @returns {string} */
export function floatRepr(value) {
  const named = special(value);
  if (named) return named;
  if (value < 0 || Object.is(value, -0)) return `-${floatRepr(-value)}`;
  if (value === 0) return "0.0";
  const [digits, exponent] = scientific(value.toExponential());
  if (exponent < -4 || exponent >= 16) return exponentForm(digits, exponent);
  const text = positional(digits, exponent);
  return text.includes(".") ? text : `${text}.0`;
}

/** Python's `f"{value:g}"`.
 * @param {number} value @returns {string} */
export function floatShort(value) {
  const named = special(value);
  if (named) return named;
  if (value < 0 || Object.is(value, -0)) return `-${floatShort(-value)}`;
  if (value === 0) return "0";
  const [digits, exponent] = scientific(value.toExponential(5));
  const short = digits.replace(/0+$/, "") || "0";
  return exponent < -4 || exponent >= 6 ? exponentForm(short, exponent) : positional(short, exponent);
}

/** Python's `f"{Decimal(str(value)):f}"` for a positive number: never an exponent.
 * @param {number} value @returns {string} */
export function floatPlain(value) {
  const text = floatRepr(value);
  return text.includes("e") ? positional(...scientific(value.toExponential())) : text;
}

function stringRepr(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  let out = quote;
  for (const char of text) {
    const code = char.codePointAt(0);
    if (char === quote || char === "\\") out += `\\${char}`;
    else if (char === "\n") out += "\\n";
    else if (char === "\r") out += "\\r";
    else if (char === "\t") out += "\\t";
    else if (char === " " || !UNPRINTABLE.test(char)) out += char;
    else if (code < 0x100) out += `\\x${code.toString(16).padStart(2, "0")}`;
    else if (code < 0x10000) out += `\\u${code.toString(16).padStart(4, "0")}`;
    else out += `\\U${code.toString(16).padStart(8, "0")}`;
  }
  return out + quote;
}

/** Python's `repr` of a value that `json.js` has read (bigint is an int, number a float, Map a dict).
 * @param {unknown} value @returns {string} */
export function repr(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "bigint") return String(value);
  if (typeof value === "number") return floatRepr(value);
  if (typeof value === "string") return stringRepr(value);
  if (Array.isArray(value)) return `[${value.map(repr).join(", ")}]`;
  return `{${[...value].map(([key, item]) => `${repr(key)}: ${repr(item)}`).join(", ")}}`;
}

/** Python's `str` of such a value.
 * @param {unknown} value @returns {string} */
export const str = (value) => (typeof value === "string" ? value : repr(value));

/** Python's `type(value).__name__`.
 * @param {unknown} value @returns {string} */
export function typeName(value) {
  if (value === null || value === undefined) return "NoneType";
  if (Array.isArray(value)) return "list";
  return { boolean: "bool", bigint: "int", number: "float", string: "str" }[typeof value] ?? "dict";
}
