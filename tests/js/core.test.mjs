// The editor's arithmetic against Python's answers (tests/fixtures/schedule_cases.json).
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { allStayDense, milliseconds, pace, runSeconds, shortTime } from "../../nodes/web/core/calibration.js";
import { chooseTiling, runTiling } from "../../nodes/web/core/grid.js";
import {
  attentionWork, progressAt, samplerSigmas, sigmaAt, stepOutlooks, videoGrid,
} from "../../nodes/web/core/outlook.js";
import { windowDensity, windowTiles } from "../../nodes/web/core/patterns.js";
import { format, parse } from "../../nodes/web/core/schedule.js";

const cases = JSON.parse(readFileSync(new URL("../fixtures/schedule_cases.json", import.meta.url), "utf8"));
const gridOf = ([t, h, w]) => ({ t, h, w });

/** Equal to within rounding: sums are taken in another order. */
function close(actual, expected, what) {
  if (expected === null || actual === null) return assert.equal(actual, expected, what);
  assert.ok(Math.abs(actual - expected) <= 1e-12 * Math.max(1, Math.abs(expected)), `${what}: ${actual}, ${expected}`);
}

for (const { text, canonical, error, phases } of cases.texts) {
  test(`text ${JSON.stringify(text).slice(0, 60)}`, () => {
    if (error !== undefined) return assert.throws(() => parse(text), { message: error });
    const found = parse(text);
    assert.deepEqual(found, phases);
    assert.equal(format(found), canonical);
    assert.deepEqual(parse(canonical), phases);
  });
}

test("what is no text is a sentence", () => {
  assert.throws(() => parse(null), /a schedule is text, got NoneType/);
  assert.throws(() => parse(5), /a schedule is text, got float/);
});

test("video grids", () => {
  for (const { width, height, frames, pixels, grid, error } of cases.sizes) {
    const made = () => videoGrid(width, height, frames, pixels);
    if (error) assert.throws(made, { message: error });
    else assert.deepEqual(Object.values(made()), grid);
  }
});

test("tilings", () => {
  for (const { grid, tile, pieces, largest } of cases.tilings) {
    const found = chooseTiling(gridOf(grid), 64, tile);
    assert.deepEqual([found.pieces, found.tile], [pieces, largest], `${grid} ${tile}`);
  }
  for (const { grid, pieces } of cases.runTilings) assert.deepEqual(runTiling(gridOf(grid)).pieces, pieces);
  assert.throws(() => chooseTiling(gridOf([3, 3, 3]), 64, [9, 9, 9]), /at most 64 tokens/);
  assert.throws(() => chooseTiling(gridOf([3, 3, 3]), 0), /at least one slot/);
});

test("windows", () => {
  for (const { grid, window, tiles, density } of cases.windows) {
    const tiling = chooseTiling(gridOf(grid));
    assert.deepEqual(windowTiles(window, tiling), tiles, `${grid} ${window}`);
    close(windowDensity(window, tiling), density, `${grid} ${window}`);
  }
});

test("runs", () => {
  for (const run of cases.runs) {
    const sigmas = samplerSigmas(run.steps, run.shift);
    sigmas.forEach((sigma, i) => close(sigma, run.sigmas[i], "sigma"));
    const steps = stepOutlooks(parse(run.text), gridOf(run.grid), sigmas.slice(0, -1));
    assert.deepEqual(steps.map((step) => step.phase), run.phases);
    steps.forEach((step, i) => close(step.density, run.densities[i], run.text));
    close(attentionWork(steps), run.work, run.text);
  }
});

test("progress and sigma are inverse", () => {
  for (const shift of [1, 3, 8]) {
    for (const sigma of [0, 0.1, 0.5, 0.99, 1]) close(sigmaAt(progressAt(sigma, shift), shift), sigma, "sigma");
  }
});

test("estimates", () => {
  for (const { call, answer } of cases.estimates) {
    const found = milliseconds(cases.entries, call);
    if (!answer) {
      assert.equal(found, null);
      continue;
    }
    close(found.ms, answer.ms, JSON.stringify(call));
    close(found.denseMs, answer.denseMs, "dense");
    assert.equal(found.entry, cases.entries[answer.entry]);
    assert.equal(found.scaled, answer.scaled);
  }
});

test("what runs take", () => {
  for (const { card, text, grid, steps, shift, model, backends, answer, anySize, allStayDense: all } of cases.costs) {
    const phases = parse(text), outlooks = stepOutlooks(phases, gridOf(grid), samplerSigmas(steps, shift).slice(0, -1));
    const found = runSeconds(cases.entries, card, phases, outlooks, model, backends);
    const said = JSON.stringify([card, text, model.tokens, backends]);
    assert.equal(allStayDense(outlooks, backends), all, said);
    assert.equal(runSeconds(cases.entries, card, phases, outlooks, model, backends, true) !== null, anySize, said);
    if (!answer) {
      assert.equal(found, null, said);
      continue;
    }
    close(found.seconds, answer.seconds, said);
    close(found.denseSeconds, answer.denseSeconds, said);
    found.steps.forEach((seconds, i) => close(seconds, answer.steps[i], said));
    assert.equal(found.entry, cases.entries[answer.entry], said);
    const rest = ({ ran, scaled, staysDense }) => ({ ran, scaled, staysDense });
    assert.deepEqual(rest(found), rest(answer), said);
  }
});

test("times and ratios in words", () => {
  for (const { seconds, text } of cases.times) assert.equal(shortTime(seconds), text, String(seconds));
  for (const { ratio, kind, times } of cases.paces) assert.deepEqual(pace(ratio), { kind, times }, String(ratio));
});
