// JSON as Python's `json.loads` reads it: the same values (an int is a bigint, a float a number, an object a Map) and,
// where the text is broken, the same words, line and column.

const MAX_DEPTH = 900;
const MAX_DIGITS = 4300;
const ESCAPES = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

/** Broken JSON; `line` and `column` count from 1. */
export class JsonError extends Error {
  constructor(problem, chars, position) {
    super(problem);
    const before = chars.slice(0, position);
    this.problem = problem;
    this.line = before.filter((char) => char === "\n").length + 1;
    this.column = position - before.lastIndexOf("\n");
  }
}

/** A number or a nesting that Python refuses. */
export class JsonTooLarge extends Error {}

/** Read a JSON text.
 * @param {string} text @returns {unknown}
 * Throws JsonError, JsonTooLarge. */
export function readJson(text) {
  const reader = new Reader([...text]);
  const [value, end] = reader.value(reader.skip(0), 0);
  const rest = reader.skip(end);
  if (rest !== reader.chars.length) reader.fail("Extra data", rest);
  return value;
}

class Reader {
  /** @param {string[]} chars code points */
  constructor(chars) {
    this.chars = chars;
  }

  fail(problem, position) {
    throw new JsonError(problem, this.chars, position);
  }

  skip(at) {
    while (at < this.chars.length && " \t\n\r".includes(this.chars[at])) at++;
    return at;
  }

  startsWith(word, at) {
    return this.chars.slice(at, at + word.length).join("") === word;
  }

  /** @returns {[unknown, number]} the value and the place behind it */
  value(at, depth) {
    if (depth > MAX_DEPTH) throw new JsonTooLarge();
    const char = this.chars[at];
    if (char === '"') return this.string(at + 1);
    if (char === "{") return this.object(at + 1, depth + 1);
    if (char === "[") return this.array(at + 1, depth + 1);
    const names = { null: null, true: true, false: false, NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };
    for (const [name, value] of Object.entries(names)) {
      if (this.startsWith(name, at)) return [value, at + name.length];
    }
    return this.number(at);
  }

  number(at) {
    const found = /^(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?/.exec(this.digits(at));
    if (!found) this.fail("Expecting value", at);
    const [all, whole, fraction, exponent] = found;
    if (fraction || exponent) return [Number(all), at + all.length];
    if (whole.replace("-", "").length > MAX_DIGITS) throw new JsonTooLarge();
    return [BigInt(whole), at + all.length];
  }

  digits(at) {
    let end = at;
    while (end < this.chars.length && "+-.eE0123456789".includes(this.chars[end])) end++;
    return this.chars.slice(at, end).join("");
  }

  string(at) {
    const begin = at - 1;
    let out = "";
    for (;;) {
      const char = this.chars[at];
      if (char === undefined) this.fail("Unterminated string starting at", begin);
      if (char === '"') return [out, at + 1];
      if (char.codePointAt(0) < 0x20) this.fail("Invalid control character at", at);
      if (char !== "\\") {
        out += char;
        at++;
        continue;
      }
      const escape = this.chars[at + 1];
      if (escape === undefined) this.fail("Unterminated string starting at", begin);
      if (escape !== "u") {
        if (!(escape in ESCAPES)) this.fail("Invalid \\escape", at);
        out += ESCAPES[escape];
        at += 2;
        continue;
      }
      out += String.fromCharCode(this.hex(at + 2));
      at += 6;
    }
  }

  hex(at) {
    const digits = this.chars.slice(at, at + 4).join("");
    // Python wants one more character behind the digits: a string cannot end there.
    if (at + 4 >= this.chars.length || !/^[0-9a-fA-F]{4}$/.test(digits)) this.fail("Invalid \\uXXXX escape", at - 1);
    return parseInt(digits, 16);
  }

  object(at, depth) {
    const found = new Map();
    at = this.skip(at);
    if (this.chars[at] === "}") return [found, at + 1];
    for (;;) {
      if (this.chars[at] !== '"') this.fail("Expecting property name enclosed in double quotes", at);
      const [key, behind] = this.string(at + 1);
      at = this.skip(behind);
      if (this.chars[at] !== ":") this.fail("Expecting ':' delimiter", at);
      const [value, end] = this.value(this.skip(at + 1), depth);
      found.set(key, value);
      at = this.skip(end);
      if (this.chars[at] === "}") return [found, at + 1];
      if (this.chars[at] !== ",") this.fail("Expecting ',' delimiter", at);
      at = this.skip(at + 1);
    }
  }

  array(at, depth) {
    const found = [];
    at = this.skip(at);
    if (this.chars[at] === "]") return [found, at + 1];
    for (;;) {
      const [value, end] = this.value(at, depth);
      found.push(value);
      at = this.skip(end);
      if (this.chars[at] === "]") return [found, at + 1];
      if (this.chars[at] !== ",") this.fail("Expecting ',' delimiter", at);
      at = this.skip(at + 1);
    }
  }
}
