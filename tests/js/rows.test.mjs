// Editing operations: ends stay sorted, the last is 0, comments stay with their rows, and every result parses.
import assert from "node:assert/strict";
import { test } from "node:test";

import { MAX_PHASES, PRESETS } from "../../nodes/web/core/known.js";
import { formatRows, moved, removed, roomOf, rowsOf, split, withRow } from "../../nodes/web/core/rows.js";
import { format, parse } from "../../nodes/web/core/schedule.js";

const TEXT = `# fps-schedule v1, unit sigma
# until   attention   granularity   window t h w
# mine
  0.90    fp8         x2            all 15 12  # coarse
  0.45    dense
# before the end
  0.00    bf16        -             all 20 16
# last words
`;
const rows = () => rowsOf(TEXT, parse(TEXT));
const plain = (some) => some.map(({ until, attention }) => [until, attention]);

test("comments survive", () => {
  assert.equal(formatRows(rows()), TEXT);
  assert.equal(formatRows(rowsOf(PRESETS.fast, parse(PRESETS.fast))), PRESETS.fast);
  const json = '[{"until": 0, "attention": "dense"}]';
  assert.equal(formatRows(rowsOf(json, parse(json))), PRESETS.dense);
});

test("what stands behind the two lines that are written anew is kept", () => {
  for (const [line, kept] of [
    ["# fps-schedule v1, unit sigma", []],
    ["#fps-schedule   v1", []],
    ["# until attention granularity window", []],
    ["# fps-schedule v1, unit sigma (tuned for my cat)", ["# (tuned for my cat)"]],
    ["# fps-schedule v1 from Anna, with care", ["# from Anna, with care"]],
    ["# until attention granularity window t h w -- keep t", ["# -- keep t"]],
    ["# until attention granularity windows", ["# until attention granularity windows"]],
    ["# until dawn", ["# until dawn"]],
  ]) {
    const text = `${line}\n0 dense\n`;
    const [row] = rowsOf(text, parse(text));
    assert.deepEqual(row.above, kept, line);
    assert.equal(formatRows(rowsOf(formatRows([row]), [row])), formatRows([row]));
  }
});

test("moving exchanges contents, not ends", () => {
  const down = moved(rows(), 0, 1);
  assert.deepEqual(plain(down), [[0.9, "dense"], [0.45, "fp8"], [0, "bf16"]]);
  assert.deepEqual(plain(moved(down, 1, 0)), plain(rows()));
  assert.deepEqual(plain(moved(rows(), 2, 0)), [[0.9, "bf16"], [0.45, "fp8"], [0, "dense"]]);
  assert.match(formatRows(moved(rows(), 2, 0)), /# last words\n$/);
  assert.deepEqual(moved(rows(), 0, -1), rows());
  assert.deepEqual(moved(rows(), 2, 3), rows());
});

test("removing keeps the end", () => {
  assert.deepEqual(plain(removed(rows(), 2)), [[0.9, "fp8"], [0, "dense"]]);
  assert.deepEqual(plain(removed(rows(), 0)), [[0.45, "dense"], [0, "bf16"]]);
  assert.equal(removed(rows().slice(2), 0).length, 1);
});

test("splitting halves the part of the run", () => {
  const more = split(rows(), 2, 8);
  assert.equal(more.length, 4);
  assert.ok(more[2].until < 0.45 && more[2].until > 0);
  assert.equal(split([{ ...rows()[2], until: 0 }], 0, 1)[0].until, 0.5);
  let many = rows();
  for (let i = 0; i < 40; i++) many = split(many, i % many.length, 8);
  assert.equal(many.length, MAX_PHASES);
  assert.equal(format(parse(formatRows(many))), format(many));
  const tight = [{ ...rows()[1], until: 1e-9 }, { ...rows()[1], until: 0 }];
  assert.equal(split(tight, 1, 1), tight);
});

test("changing the attention completes the row", () => {
  assert.deepEqual(withRow(rows(), 1, { attention: "fp8" })[1].granularity, "x1");
  assert.deepEqual(withRow(rows(), 1, { attention: "bf16" })[1].window, [null, "60%", "60%"]);
  const dense = withRow(rows(), 0, { attention: "dense" })[0];
  assert.deepEqual([dense.granularity, dense.window, dense.selector], [null, null, null]);
  assert.equal(withRow(rows(), 0, { attention: "bf16" })[0].granularity, null);
});

test("the room of an end", () => {
  assert.deepEqual(roomOf(rows(), 0), [1, 0.45]);
  assert.deepEqual(roomOf(rows(), 1), [0.9, 0]);
  assert.equal(roomOf(rows(), 2), null);
  assert.equal(roomOf(rows(), 3), null);
});
