// Checks of the schedule editor: what a demanding user does to it.

import { writeFileSync } from "node:fs";
import { join } from "node:path";

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
export const checks = (
  { page, job, errors, measured, row, text, settle, load, fill, drag, middle, problem, shot, setValue },
) => ({
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

  /** The longest and the shortest schedule, and the largest and smallest videos. */
  async extremes() {
    const kind = (i) => (i % 3 ? `fp8 x${i % 3} all ${30 + i}% 60%` : i % 2 ? "dense" : "bf16 - 3 all 20");
    const lines = Array.from({ length: 20 }, (_, i) => `${((19 - i) / 20).toFixed(2)} ${kind(i)}`);
    await load(workflow(lines.join("\n")));
    const seen = {};
    const note = async (name) => {
      seen[name] = await page.evaluate(() => [document.querySelectorAll(".fps-editor [data-phase]").length,
        document.querySelectorAll(".fps-plot [data-step]").length,
        document.querySelectorAll(".fps-editor [data-end]").length,
        document.querySelector(".fps-error:not([hidden])")?.innerText ?? "",
        document.querySelector(".fps-caption").innerText]);
    };
    await note("twenty");
    await shot(`${job.name}-twenty`);
    await page.locator(".fps-add").click({ force: true });
    seen.full = await page.locator(".fps-hint").innerText();
    await fill(page.locator("[data-view=steps]"), "200");
    await note("manySteps");
    await page.locator(".fps-editor").evaluate((e) => e.scrollTo(0, 0));
    seen.drag = await page.evaluate(async () => {
      const knob = document.querySelector(".fps-editor [data-end='9'] .fps-catch").getBoundingClientRect();
      const box = document.querySelector(".fps-plot-box");
      const at = { clientX: knob.x + knob.width / 2, clientY: knob.y + 20, pointerId: 1, button: 0, bubbles: true };
      const handle = document.querySelector(".fps-editor [data-end='9'] .fps-catch");
      handle.dispatchEvent(new PointerEvent("pointerdown", at));
      let redraws = 0;
      const observer = new MutationObserver(() => redraws++);
      observer.observe(document.querySelector(".fps-plot"), { childList: true });
      let frames = 0;
      const start = performance.now();
      for (; frames < 10; frames++) {
        for (let i = 0; i < 20; i++) {
          const clientX = at.clientX + ((frames * 20 + i) % 3) - 1;
          box.dispatchEvent(new PointerEvent("pointermove", { ...at, clientX }));
        }
        await new Promise((resolve) => requestAnimationFrame(resolve));
      }
      const milliseconds = performance.now() - start;
      box.dispatchEvent(new PointerEvent("pointerup", at));
      observer.disconnect();
      return { redraws, perFrame: milliseconds / frames };
    });
    await load(workflow("0 dense"));
    await note("one");
    seen.removable = await row(0, "remove").isEnabled();
    await fill(page.locator("[data-view=steps]"), "1");
    await fill(page.locator("[data-view=frames]"), "1");
    await note("oneStep");
    await load(workflow(job.mild));
    for (const name of ["width", "height"]) await fill(page.locator(`[data-view=${name}]`), "16");
    await fill(page.locator("[data-view=frames]"), "1");
    await note("tiny");
    await shot(`${job.name}-tiny`);
    for (const name of ["width", "height"]) await fill(page.locator(`[data-view=${name}]`), "16384");
    await note("enormous");
    await fill(page.locator("[data-view=height]"), "16");
    await note("thin");
    await shot(`${job.name}-thin`);
    await fill(page.locator("[data-view=steps]"), "1000");
    await note("thousand");
    await fill(page.locator("[data-view=steps]"), "1001");
    seen.more = await page.locator(".fps-problem-line").innerText();
    return seen;
  },

  /** Whatever is pasted into the text is shown, and edited without loss of comments. */
  async paste() {
    const found = [];
    const texts = ["\ufeff# mine\r\n0.9\tdense\r\n0.0\tfp8\tx1\tall\t60%\t60%\t# last\r\n",
      '{"version": 1, "unit": "sigma", "phases": [{"until": 0.9, "attention": "dense"}, {"until": 0, ' +
        '"attention": "fp8", "granularity": "x1", "window": ["all", "60%", 20]}]}',
      "# only\n# comments", "0.9 dense # a # b\n\n\n# between\n0 bf16 - all 5 5\n\n# end"];
    for (const each of texts) {
      await load(workflow(""));
      await page.evaluate((each) => navigator.clipboard.writeText(each), each);
      const area = page.locator("textarea:visible").first();
      await area.click();
      await page.keyboard.press("Control+a");
      await page.keyboard.press("Control+v");
      await settle(600);
      const before = await text();
      const rows = await page.locator(".fps-editor [data-phase]:visible").count();
      if (rows) await fill(row(0, "until"), "0.95");
      found.push({ given: each, before, rows, after: await text(),
        error: rows ? "" : await page.locator(".fps-error").innerText() });
    }
    return found;
  },

  /** What is dragged goes away meanwhile: by another text, by removing the node. */
  async dragged() {
    await load(workflow(job.three));
    const hold = async (locator, by) => {
      const at = await middle(locator);
      await page.mouse.move(...at);
      await page.mouse.down();
      await page.mouse.move(at[0] + by[0], at[1] + by[1], { steps: 4 });
      return async () => {
        await page.mouse.move(at[0] + 2 * by[0], at[1] + 2 * by[1], { steps: 4 });
        await page.mouse.up();
        await settle(500);
      };
    };
    let drop = await hold(page.locator(".fps-editor [data-end='1'] .fps-catch"), [15, 0]);
    await setValue("schedule", "0 dense");
    await settle(400);
    await drop();
    const texts = [await text()];
    await setValue("schedule", job.three);
    await settle(400);
    drop = await hold(row(2, "grip"), [0, -30]);
    await setValue("schedule", job.mild);
    await settle(400);
    await drop();
    texts.push(await text());
    drop = await hold(page.locator(".fps-editor [data-end='0'] .fps-catch"), [15, 0]);
    await page.evaluate(() => app.graph.remove(app.graph.getNodeById(1)));
    await settle(400);
    await drop();
    return { texts, held: await page.evaluate(() => window.fpsHeld()) };
  },

  /** Collapsed, muted, bypassed, and back. */
  async modes() {
    await load(workflow(job.mild));
    const found = [];
    for (const [name, there, back] of [["collapsed", "collapse(true)", "collapse(true)"],
      ["muted", "mode = 2", "mode = 0"], ["bypassed", "mode = 4", "mode = 0"]]) {
      await page.evaluate(`app.graph.getNodeById(1).${there}; app.canvas.setDirty(true, true)`);
      await settle(900);
      await shot(`${job.name}-${name}`);
      const shown = await page.locator(".fps-editor").isVisible();
      await page.evaluate(`app.graph.getNodeById(1).${back}; app.canvas.setDirty(true, true)`);
      await settle(900);
      await fill(row(1, "w"), `${40 + found.length}%`);
      found.push([name, shown, (await text()).includes(`${40 + found.length}%`)]);
    }
    return found;
  },

  /** The host's settings change while the editor is open: palette, language, renderer. */
  async settings() {
    await load(workflow(job.mild));
    const set = async (name, value) => {
      await page.evaluate(([name, value]) => app.extensionManager.setting.set(name, value), [name, value]);
      await settle(1500);
    };
    const look = () => page.evaluate(() => {
      const editors = [...document.querySelectorAll(".fps-editor")].filter((e) => e.getClientRects().length);
      return [editors.length, editors[0]?.classList.contains("fps-light"),
        editors[0]?.querySelector(".fps-add").textContent, ...window.fpsHeld()];
    });
    const seen = [await look()];
    await set("Comfy.ColorPalette", "light");
    seen.push(await look());
    await shot(`${job.name}-switched-light`);
    await set("Comfy.ColorPalette", "dark");
    seen.push(await look());
    await set("Comfy.Locale", "zh");
    seen.push(await look());
    await fill(row(1, "w"), "41%");
    const texts = [await text()];
    await set("Comfy.Locale", "en");
    seen.push(await look());
    const vue = await page.evaluate(() => Boolean(window.LiteGraph.vueNodesMode));
    for (const [now, share] of [[!vue, "42%"], [vue, "43%"]]) {
      await set("Comfy.VueNodes.Enabled", now);
      seen.push(await look());
      await shot(`${job.name}-renderer-${now ? "nodes-2" : "canvas"}`);
      await page.evaluate(() => {
        app.canvas.ds.scale = 1;
        [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [0, 0];
        app.canvas.setDirty(true, true);
      });
      await settle();
      await fill(row(1, "w"), share);
      texts.push(await text());
    }
    return { seen, texts: texts.map((each) => each.trim().split(" ").at(-1)) };
  },

  /** Workflows in two tabs, each with its own text in a node of the same id. */
  async tabs() {
    const switchTo = async (back) => {
      await page.evaluate((back) => app.extensionManager.command.execute(
        back ? "Workspace.PreviousOpenedWorkflow" : "Workspace.NextOpenedWorkflow"), back);
      await page.waitForTimeout(1500);
    };
    await load(workflow(job.mild)); // each in its own tab
    await fill(row(1, "w"), "21%");
    await load(workflow(job.three));
    await fill(row(2, "w"), "22%");
    const seen = [];
    for (const back of [true, false, true]) {
      await switchTo(back);
      await page.waitForFunction(() => document.querySelector(".fps-editor")?.getBoundingClientRect().width > 50);
      const last = (await page.locator(".fps-editor [data-phase]").count()) - 1;
      seen.push([last + 1, await row(last, "w").inputValue(), (await text()).trim().split(" ").at(-1),
        await page.evaluate(() => window.fpsHeld())]);
    }
    return seen;
  },

  /** The browser's zoom and the window's size. */
  async window() {
    const client = await page.context().newCDPSession(page);
    const found = [];
    for (const [zoom, width, height] of [[2, 750, 540], [0.5, 3000, 2160], [1, 900, 600]]) {
      await client.send("Emulation.setDeviceMetricsOverride",
        { width, height, deviceScaleFactor: zoom, mobile: false });
      await load(workflow(job.mild, { pos: [120, 90], size: [560, 820] }), 1, zoom === 2 ? [-90, -260] : [0, 0]);
      const { data } = await client.send("Page.captureScreenshot"); // the other kind undoes the zoom
      writeFileSync(join(job.shots, `${job.name}-window-${zoom}.png`), Buffer.from(data, "base64"));
      const end = await middle(page.locator(".fps-editor [data-end='0'] .fps-catch"));
      await drag(end, [end[0] + 40, end[1]]);
      const after = await middle(page.locator(".fps-editor [data-end='0'] .fps-catch"));
      found.push({ zoom, moved: after[0] - end[0],
        page: await page.evaluate(() => [window.devicePixelRatio, window.innerWidth]),
        over: await page.locator(".fps-editor").evaluate((e) => e.scrollWidth - e.clientWidth) });
    }
    await client.send("Emulation.clearDeviceMetricsOverride");
    await client.detach();
    return found;
  },

  /** The answer about the card is late, or none, or of another form. */
  async answers() {
    await load(workflow(job.mild));
    const tell = () => page.evaluate(() =>
      window.comfyAPI.api.api.dispatchEvent(new CustomEvent("execution_success", { detail: {} })));
    const line = () => page.locator(".fps-seconds").innerText();
    const seen = [];
    const before = errors.length;
    const good = { json: { card: "NVIDIA H200", entries: job.entries } };
    for (const answer of [{ status: 500, body: "broken" }, { body: "<html>" }, { json: null }, { json: [] },
      { json: { card: 5, entries: "none" } }, { json: { card: "NVIDIA H200", entries: [null, 5, {}, { points: [] }] } },
      { json: { card: "NVIDIA H200", entries: [{ ...job.entries[0], points: [["a", null]], dense_ms: "x" }] } }]) {
      measured.fulfill = answer;
      await tell();
      await settle();
      seen.push(await line());
    }
    let release;
    measured.fulfill = new Promise((resolve) => { release = resolve; });
    await tell(); // this answer comes last
    await settle(200);
    measured.fulfill = good;
    await tell();
    await settle();
    const known = await line();
    release({ json: { card: null, entries: [] } });
    await settle();
    const late = await line();
    await fill(row(1, "w"), "44%");
    measured.fulfill = null;
    await tell();
    await settle();
    const told = errors.splice(before).filter((error) => !error.includes("status of 500")); // the browser's own line
    errors.push(...told);
    return { seen, known, late, text: await text() };
  },
});
