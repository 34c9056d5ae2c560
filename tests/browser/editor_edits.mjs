// Checks of the schedule editor: what is done in it, by keyboard and by mouse.

import { workflow } from "./editor_page.mjs";

/** @param {any} of the page, the job and the tools of editor_page.mjs */
export const checks = ({ page, job, row, values, text, settle, load, fill, drag, middle, problem, shot }) => ({
  async keyboard() {
    const seen = [];
    const note = async () => seen.push(await text());
    await load(workflow(job.mild));
    await row(0, "until").focus();
    await page.keyboard.press("Control+a");
    await page.keyboard.type("0.8");
    await page.keyboard.press("Tab"); // the value is taken when the field is left
    await note();
    await page.keyboard.type("fp8"); // a select: type ahead
    await settle();
    await note();
    await page.keyboard.press("Tab");
    await page.keyboard.press("ArrowDown"); // granularity x1 -> x2
    for (let i = 0; i < 3; i++) await page.keyboard.press("Tab"); // past pattern and time
    await page.keyboard.type("12");
    await page.keyboard.press("Enter");
    await page.keyboard.press("ArrowUp"); // 12 -> 13
    await note();
    await page.keyboard.press("Alt+ArrowDown"); // the row moves, the focus with it
    await note();
    const focused = await page.evaluate(() =>
      [document.activeElement.closest("[data-phase]")?.dataset.phase, document.activeElement.dataset.column]);
    await page.locator(".fps-add").focus();
    await page.keyboard.press("Enter");
    await note();
    await row(0, "remove").focus();
    await page.keyboard.press("Space");
    await note();
    await row(0, "grip").focus();
    await page.keyboard.press("ArrowDown");
    await note();
    return { seen, focused };
  },

  async mouse() {
    const seen = [];
    const note = async () => seen.push(await text());
    await load(workflow(job.three));
    await page.locator(".fps-add").click();
    await note();
    await row(0, "remove").click();
    await note();
    await drag(await middle(row(2, "grip")), await middle(row(0, "grip")));
    await note();
    await row(1, "attention").selectOption("bf16");
    await note();
    const end = await middle(page.locator(".fps-editor [data-end='0'] .fps-catch"));
    await drag(end, [end[0] - 40, end[1]]);
    await note();
    await page.locator(".fps-chip[data-preset=fast]").click();
    await note();
    await page.locator(".fps-plot [data-step='19']").click();
    const picked = await page.locator(".fps-focused").getAttribute("data-phase");
    return { seen, picked };
  },

  async invalid() {
    await load(workflow(job.three));
    const before = await text();
    const seen = [];
    for (const [index, column, value] of [[0, "until", "2"], [0, "until", "0.3"], [0, "until", "x"], [1, "w", "0"],
      [1, "h", "120%"], [1, "t", "many words here"], [0, "until", ""]]) {
      const field = row(index, column);
      await fill(field, value);
      await settle(100);
      seen.push([value, await problem(), await field.getAttribute("aria-invalid"), await field.inputValue()]);
      await field.press("Escape");
    }
    return { seen, after: await problem(), same: (await text()) === before };
  },

  async preset() {
    await load(workflow(job.mild, { preset: "balanced" }));
    const note = await page.locator(".fps-note").innerText();
    const before = await values();
    await fill(row(1, "until"), "0.5");
    return { note, before, after: await values() };
  },

  async undo() {
    const graph = workflow(job.mild);
    graph.nodes.pop(); // the preview's own widgets change by themselves in older frontends, and take part in undo
    graph.links = [];
    graph.nodes[0].outputs[1].links = null;
    await load(graph);
    await settle(600);
    const [before, undone, redone] = [await text(), [], []];
    await fill(row(1, "h"), "30%");
    const edited = await text();
    await page.keyboard.press("Control+z"); // the focus is in the field
    await settle(1200);
    undone.push(await text());
    const focused = await page.evaluate(() => document.activeElement.dataset?.column);
    await page.keyboard.press("Control+y");
    await settle(1200);
    redone.push(await text());
    await page.mouse.click(250, 700); // the focus is nowhere
    await page.keyboard.press("Control+z");
    await settle(1200);
    undone.push(await text());
    const end = await middle(page.locator(".fps-editor [data-end='0'] .fps-catch"));
    await drag(end, [end[0] + 60, end[1]], 12);
    const dragged = await text();
    await page.keyboard.press("Control+z");
    await settle(1200);
    undone.push(await text());
    return { before, edited, dragged, undone, redone, focused };
  },

  async keys() {
    await load(workflow(job.mild));
    await page.evaluate(() => app.canvas.selectNode?.(app.graph.getNodeById(1)));
    const count = () => page.evaluate(() => (app.graph.nodes ?? app.graph._nodes).length);
    for (const place of [row(0, "until"), row(1, "attention"), row(0, "grip"), page.locator(".fps-tiles-box"),
      page.locator("[data-view=width]")]) {
      await place.focus();
      for (const key of ["Delete", "Backspace", "Control+m", "Control+b", "q", "Control+c", "Control+v"]) {
        await page.keyboard.press(key);
      }
      await page.keyboard.press("Escape");
    }
    await settle(500);
    return { count: await count(), mode: await page.evaluate(() => app.graph.getNodeById(1)?.mode) };
  },

  async wheel() {
    await load(workflow(job.mild, { size: [560, 480] }));
    await page.evaluate(() => document.activeElement.blur());
    const scale = () => page.evaluate(() => app.canvas.ds.scale);
    const at = await middle(page.locator(".fps-editor"));
    const before = await scale();
    await page.mouse.move(...at);
    await page.mouse.wheel(0, -120);
    await settle();
    const zoomed = await scale();
    await load(workflow(job.mild, { size: [560, 480] }));
    await page.locator(".fps-chip").first().focus();
    const [x, y] = await middle(page.locator(".fps-editor"));
    await page.mouse.move(x, y);
    await page.mouse.wheel(0, 120);
    await settle();
    const scrolled = await page.locator(".fps-editor").evaluate((e) => e.scrollTop);
    return { before, zoomed, scrolled, after: await scale() };
  },

  async copy() {
    await load(workflow(job.mild, { size: [480, 700], pos: [120, 90] }));
    await fill(row(1, "w"), "25%");
    await page.evaluate(() => {
      document.activeElement.blur();
      app.canvas.deselectAll?.();
      app.canvas.selectNode(app.graph.getNodeById(1));
      app.canvas.canvas.focus?.();
    });
    await page.keyboard.press("Control+c");
    await page.mouse.move(900, 400);
    await page.keyboard.press("Control+v");
    await settle(1200);
    const ids = await page.evaluate(() => (app.graph.nodes ?? app.graph._nodes)
      .filter((n) => n.type === "FPSAttentionSchedule").map((n) => n.id));
    const copied = await text(ids.at(-1));
    const editors = await page.locator(".fps-editor").count();
    await page.evaluate((id) => {
      app.graph.getNodeById(id).pos = [700, 90];
      app.canvas.setDirty(true, true);
    }, ids.at(-1));
    await settle(800);
    const second = page.locator(".fps-editor").nth(1).locator('[data-phase="1"] [data-column="w"]');
    await fill(second, "55%");
    return { ids, copied, editors, first: await text(ids[0]), second: await text(ids.at(-1)) };
  },

  async view() {
    await load(workflow(job.mild));
    const work = () => page.locator(".fps-work").innerText();
    const before = await work();
    await fill(page.locator("[data-view=steps]"), "4");
    const bars = await page.locator(".fps-plot [data-step]").count();
    await page.locator("[data-view=model]").selectOption("Wan 14B");
    await fill(page.locator("[data-view=width]"), "1280");
    await fill(page.locator("[data-view=height]"), "-3");
    const sentence = await page.locator(".fps-problem-line").innerText();
    await page.locator("[data-view=height]").press("Escape");
    await fill(page.locator("[data-view=height]"), "720");
    const saved = await page.evaluate(async () => (await app.graphToPrompt()));
    const caption = await page.locator(".fps-caption").innerText();
    await fill(page.locator("[data-view=frames]"), "4001");
    await fill(page.locator("[data-view=width]"), "16384");
    const toolarge = await page.locator(".fps-error").innerText();
    return { before, after: await work(), bars, sentence, caption, toolarge,
      properties: saved.workflow.nodes.find((n) => n.id === 1).properties.fps_view, prompt: saved.output["1"].inputs };
  },

  async tiles() {
    await load(workflow(job.mild));
    const caption = () => page.locator(".fps-caption").innerText();
    const box = page.locator(".fps-tiles-box");
    const seen = [await caption()];
    await box.focus();
    for (const key of ["ArrowLeft", "ArrowUp", "PageDown", "ArrowRight", "ArrowDown", "PageUp"]) {
      await page.keyboard.press(key);
      seen.push(await caption());
    }
    const { x, y, width, height } = await box.boundingBox();
    await page.mouse.click(x + width * 0.2, y + height * 0.15);
    seen.push(await caption());
    await drag([x + width * 0.5, y + height * 0.4], [x + width * 0.8, y + height * 0.6]);
    seen.push(await caption());
    return { seen };
  },

  async zoom() {
    const found = [];
    for (const [scale, offset] of [[0.6, [150, 60]], [1.25, [-180, -60]]]) {
      await load(workflow(job.mild), scale, offset);
      const end = await middle(page.locator(".fps-editor [data-end='0'] .fps-catch"));
      await drag(end, [end[0] + 40 * scale, end[1]]);
      const after = await middle(page.locator(".fps-editor [data-end='0'] .fps-catch"));
      await fill(row(1, "h"), "20%");
      found.push({ moved: (after[0] - end[0]) / scale, text: await text() });
      await shot(`${job.name}-zoom-${scale}`);
    }
    return { found };
  },
});
