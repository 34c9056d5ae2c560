// The editor without a page: its words, its view, its fields, and that no file needs a host to be imported.
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";

import { PRESETS } from "../../nodes/web/core/known.js";
import { parse } from "../../nodes/web/core/schedule.js";
import {
  FIELDS, MODELS, fieldValue, modelName, outlook, reading, shortTime, viewOf,
} from "../../nodes/web/editor/model.js";
import { TABLES, words } from "../../nodes/web/editor/strings.js";
import { changeOf, stepped } from "../../nodes/web/editor/table.js";

const WEB = new URL("../../nodes/web/", import.meta.url);

test("every module can be imported alone", async () => {
  // The host's page loads every .js below nodes/web as an extension.
  for (const folder of ["core/", "editor/"]) {
    for (const name of readdirSync(new URL(folder, WEB))) await import(new URL(folder + name, WEB));
  }
});

test("both languages say the same things", () => {
  const places = (text) => [...text.matchAll(/\{\w+\}/g)].map(([place]) => place).sort();
  assert.deepEqual(Object.keys(TABLES.zh), Object.keys(TABLES.en));
  for (const [key, text] of Object.entries(TABLES.en)) assert.deepEqual(places(TABLES.zh[key]), places(text), key);
  assert.equal(words("zh-TW")("add"), TABLES.zh.add);
  assert.equal(words("fr")("added", { phase: 3 }), "Phase 3 added.");
});

test("a view of anything is a view", () => {
  const plain = Object.fromEntries(Object.entries(FIELDS).map(([name, { value }]) => [name, value]));
  for (const saved of [undefined, null, 5, "x", [], { width: NaN, height: -1, frames: "no", steps: 0, shift: {} }]) {
    assert.deepEqual(viewOf(saved), plain);
  }
  assert.deepEqual(viewOf({ width: "1280", shift: 5.5, side: 32 }), { ...plain, width: 1280, shift: 5.5, side: 32 });
  assert.equal(fieldValue("side", 24), null);
  assert.equal(fieldValue("shift", "2,5"), 2.5);
  assert.equal(fieldValue("steps", "2.5"), null);
  assert.equal(modelName({ ...plain, ...MODELS["Wan 14B"] }), "Wan 14B");
  assert.equal(modelName({ ...plain, heads: 7 }), null);
});

test("what cannot be planned is a sentence", () => {
  const rows = parse(PRESETS.mild);
  const none = { card: null, entries: [] };
  assert.match(outlook(rows, viewOf({ width: 16384, height: 16384, frames: 4001 }), none).problem, /at most 2000000/);
  assert.equal(outlook(rows, viewOf({}), none).problem, null);
  assert.equal(outlook(rows, viewOf({}), none).seconds, null);
  assert.match(reading("0.5").error, /the attention is missing/);
});

test("arrow keys step a field", () => {
  assert.equal(stepped("until", "0.90", 1, false), "0.91");
  assert.equal(stepped("until", "x", 1, false), null);
  assert.deepEqual(["60%", "98%", "all", "12", "1", "word"].map((value) => stepped("h", value, 1, false)),
    ["65%", "all", null, "13", "2", null]);
  assert.deepEqual(["60%", "3%", "all", "12", "1"].map((value) => stepped("h", value, -1, false)),
    ["55%", "1%", "95%", "11", "1"]);
});

test("a field's value is a change of its row", () => {
  const row = parse("0 fp8 x1 all 2 3")[0];
  assert.deepEqual(changeOf(row, "h", "60%"), { window: [null, "60%", 3] });
  assert.deepEqual(changeOf(row, "t", "  "), { window: ["all", 2, 3] });
  assert.deepEqual(changeOf(row, "attention", "bf16"), { attention: "bf16" });
  assert.deepEqual(changeOf({ ...row, selector: "svg 0.3" }, "argument", "0.5"), { selector: "svg 0.5" });
  assert.deepEqual(changeOf(row, "pattern", "svg", (key) => key).window, null);
  assert.deepEqual(changeOf(row, "pattern", "window", (key) => key), { selector: null });
});

test("times read well", () => {
  assert.deepEqual([0.0123, 4.56, 123.4, 3600].map(shortTime), ["12 ms", "4.6 s", "123 s", "60 min"]);
});
