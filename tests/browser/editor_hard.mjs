// Checks of the schedule editor: what a demanding user does to it.

import { workflow } from "./editor_page.mjs";

/** Count what an editor holds on to, before any is made: its observers and its timers.
 * @param {import("playwright-core").Page} page */
export const countHeld = (page) => page.addInitScript(() => {
  const held = { observers: new Set(), timers: new Set() };
  window.fpsHeld = () => [held.observers.size, held.timers.size];
  const { ResizeObserver: Observer, setInterval: start, clearInterval: stop } = window;
  window.ResizeObserver = class extends Observer {
    observe(element, options) {
      if (String(element.getAttribute?.("class")).startsWith("fps-")) held.observers.add(this);
      return super.observe(element, options);
    }
    disconnect() {
      held.observers.delete(this);
      return super.disconnect();
    }
  };
  window.setInterval = (...values) => {
    const id = start(...values);
    if (new Error().stack.includes("fps_schedule")) held.timers.add(id);
    return id;
  };
  window.clearInterval = (id) => {
    held.timers.delete(id);
    return stop(id);
  };
});

/** @param {any} of the page, the job and the tools of editor_page.mjs */
export const checks = ({ page, job, measured, row, text, settle, load, fill, drag, middle, problem, shot, setValue }) => ({
  /** Editors that are kept, as observers and timers, while graphs come and go. */
  async leaks() {
    await load(workflow(job.mild));
    return page.evaluate(async () => {
      const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
      const found = {};
      const note = async (name) => {
        await wait(1500);
        found[name] = window.fpsHeld();
      };
      const reload = async () => {
        const saved = app.graph.serialize();
        for (let i = 0; i < 5; i++) {
          await app.loadGraphData(structuredClone(saved), true, true);
          await wait(200);
        }
      };
      await note("one");
      await reload();
      await note("loaded");
      for (let i = 0; i < 5; i++) app.graph.getNodeById(1).clone();
      await note("cloned");
      app.graph.convertToSubgraph(new Set([app.graph.getNodeById(1)]));
      await note("subgraph");
      await reload();
      await note("subgraphLoaded");
      app.graph.clear();
      await note("cleared");
      return found;
    });
  },

  async viewFields() {
    await load(workflow(job.mild));
    const field = (name) => page.locator(`[data-view=${name}]`);
    const lines = () => page.locator(".fps-problem-line").allInnerTexts();
    const seen = [];
    for (const [name, value] of [["frames", "1,000"], ["steps", "ten"], ["width", "1280"], ["shift", "2,5"]]) {
      await fill(field(name), value);
      seen.push(await lines());
    }
    await page.locator("[data-phase='1'] [data-column=w]").click(); // a redraw leaves what is wrong where it is
    const kept = [await field("frames").inputValue(), await field("frames").getAttribute("aria-describedby")];
    await fill(field("frames"), "33");
    seen.push(await lines());
    await field("steps").press("Escape");
    seen.push(await lines());
    await fill(field("shift"), "1.1");
    for (const key of ["ArrowDown", "ArrowUp", "ArrowUp"]) await field("shift").press(key);
    const view = await page.evaluate(() => app.graph.getNodeById(1).properties.fps_view);
    return { seen, kept, view };
  },

  async drafts() {
    await load(workflow(job.three));
    await fill(row(1, "w"), "many");
    await fill(row(1, "h"), "0");
    const both = await problem();
    await row(2, "t").click(); // another row
    const left = [await row(1, "w").inputValue(), await problem()];
    await fill(row(1, "t"), "7"); // the same row, taken
    const taken = [await row(1, "w").inputValue(), await row(1, "w").getAttribute("aria-invalid"), await problem()];
    await fill(row(1, "w"), "30%");
    await row(1, "h").press("Escape");
    return { both, left, taken, after: await problem(), text: await text() };
  },
});
