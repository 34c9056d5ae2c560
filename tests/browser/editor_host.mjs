// Checks of the schedule editor: what the host makes of it, and what it looks like.

import { textNode, workflow } from "./editor_page.mjs";

/** @param {any} of the page, the job and the tools of editor_page.mjs */
export const checks = (
  { page, job, errors, measured, row, link, values, text, settle, load, fill, shot, setValue, violations },
) => ({
  async saveAndRun() {
    await load(workflow(job.mild));
    await fill(row(1, "w"), "45%");
    const edited = await text();
    const saved = await page.evaluate(async () => (await app.graphToPrompt()).workflow);
    const prompt = await page.evaluate(async () => (await app.graphToPrompt()).output);
    await load(JSON.parse(JSON.stringify(saved)));
    const reloaded = await text();
    const before = await page.evaluate(async () => Object.keys(await (await fetch("/history")).json()).length);
    const history = await page.evaluate(async (before) => {
      await app.queuePrompt(0, 1);
      for (let i = 0; i < 300; i++) {
        const entries = Object.values(await (await fetch("/history")).json());
        if (entries.length > before) return entries.at(-1);
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
      return null;
    }, before);
    return { edited, reloaded, widgets: saved.nodes.find((n) => n.id === 1).widgets_values, prompt: prompt["1"].inputs,
      sent: history?.prompt[2]["1"].inputs, status: history?.status.status_str, outputs: history?.outputs };
  },

  async subgraph() {
    await load(workflow(job.mild));
    const made = await page.evaluate(async () => {
      const found = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(1)]));
      const inner = found.subgraph;
      (app.canvas.openSubgraph ?? app.canvas.setGraph).call(app.canvas, inner, found.node);
      await new Promise((resolve) => setTimeout(resolve, 800));
      Object.assign(app.canvas.ds, { scale: 1 });
      [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [0, 0];
      app.canvas.setDirty(true, true);
      return { id: (inner.nodes ?? inner._nodes)[0].id };
    });
    await page.waitForFunction(() => document.querySelector(".fps-editor")?.getBoundingClientRect().width > 50);
    await settle(800);
    await fill(row(1, "w"), "35%");
    const inside = await text(made.id);
    await shot(`${job.name}-subgraph`);
    const prompt = await page.evaluate(async () => {
      app.canvas.setGraph(app.rootGraph ?? app.graph);
      return (await app.graphToPrompt()).output;
    });
    await settle(800);
    await shot(`${job.name}-subgraph-outside`);
    return { inside, prompt: Object.values(prompt).map((n) => [n.class_type, n.inputs.schedule]) };
  },

  async promoted() {
    await load(workflow(job.mild));
    await page.evaluate(async () => {
      const { subgraph, node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(1)]));
      const inner = (subgraph.nodes ?? subgraph._nodes)[0];
      app.canvas.openSubgraph(subgraph, node);
      const slot = inner.inputs.find((input) => (input.widget?.name ?? input.name) === "schedule");
      subgraph.addInput("schedule", "STRING").connect(slot, inner);
    });
    await page.waitForFunction(() => document.querySelector(".fps-editor")?.getBoundingClientRect().width > 50);
    await settle(800);
    const note = await page.locator(".fps-note").innerText();
    await fill(row(1, "w"), "35%");
    const prompt = await page.evaluate(async () => {
      app.canvas.setGraph(app.rootGraph ?? app.graph);
      return (await app.graphToPrompt()).output;
    });
    return { note, prompt: Object.values(prompt).map((n) => [n.class_type, n.inputs.schedule]) };
  },

  async linked() {
    const graph = workflow(job.mild);
    graph.nodes.push(textNode(3, job.three));
    await load(graph);
    await link(3, 1, "schedule");
    await settle(800);
    const shown = await page.locator(".fps-note").innerText();
    const rows = await page.locator(".fps-editor [data-phase]").count();
    const enabled = await page.locator(".fps-editor tbody .fps-field:enabled").count();
    await page.locator(".fps-chip").first().click({ force: true, timeout: 1000 }).catch(() => {});
    const same = (await text()) === job.mild;
    await page.evaluate(() => {
      const target = app.graph.getNodeById(1);
      target.disconnectInput(target.inputs.findIndex((input) => (input.widget?.name ?? input.name) === "schedule"));
      target.connect(1, app.graph.getNodeById(2), 0);
    });
    await settle(800);
    const again = await page.locator(".fps-editor tbody .fps-field:enabled").count();
    return { shown, rows, enabled, same, again };
  },

  async unparsable() {
    await load(workflow(job.mild));
    const seen = [];
    for (const broken of job.broken) {
      await setValue("schedule", broken);
      await settle(450);
      seen.push([broken, await page.locator(".fps-error strong").innerText({ timeout: 2000 }).catch(() => ""),
        await text(), await page.locator(".fps-table").isVisible()]);
    }
    await shot(`${job.name}-broken`);
    await setValue("preset", "turbo");
    await settle(450);
    const unknown = await page.locator(".fps-error strong").innerText({ timeout: 2000 });
    await setValue("preset", "custom");
    await page.locator(".fps-chip[data-preset=fast]").click();
    await settle();
    return { seen, unknown, mended: await text() };
  },

  async anyText() {
    await load(workflow(job.mild));
    const before = errors.length;
    for (const each of job.anything) {
      await setValue("schedule", each);
      await settle(12);
    }
    for (const odd of [null, undefined, 5, NaN, [1], { a: 1 }]) {
      await page.evaluate((odd) => {
        app.graph.getNodeById(1).widgets.find((w) => w.name === "schedule").value = odd;
      }, odd);
      await settle(350);
    }
    for (const view of [null, 5, "x", [], { width: -1, steps: NaN, shift: 1e99, frames: "no", side: 17, heads: {} }]) {
      await page.evaluate((view) => { app.graph.getNodeById(1).properties.fps_view = view; }, view);
      await settle(350);
    }
    await setValue("schedule", job.mild);
    await settle(400);
    return { errors: errors.slice(before), rows: await page.locator(".fps-editor [data-phase]").count() };
  },

  async seconds() {
    const line = () => page.locator(".fps-seconds").innerText();
    const ran = () => page.evaluate(() =>
      window.comfyAPI.api.api.dispatchEvent(new CustomEvent("execution_success", { detail: {} })));
    const seen = [];
    const tell = async (next) => {
      measured.answer = next;
      await ran();
      await settle();
      seen.push(await line());
    };
    await page.evaluate(() => app.graph.clear());
    await settle(1000);
    const before = measured.asked;
    measured.answer = { card: "NVIDIA H200", entries: job.entries };
    await ran(); // no editor is shown
    await settle();
    const asked = [measured.asked - before];
    await load(workflow(job.mild));
    await settle();
    seen.push(await line());
    asked.push(measured.asked - before);
    await tell({ card: null, entries: [] });
    asked.push(measured.asked - before);
    await tell({ card: "NVIDIA H200", entries: job.entries });
    await tell({ card: "another", entries: job.entries });
    await tell({ card: "NVIDIA H200", entries: job.entries });
    const again = job.entries.map((e) => ({ ...e, points: e.points.map(([d, ms]) => [d, ms / 2]) }));
    await tell({ card: "NVIDIA H200", entries: again }); // the same key, measured again
    await tell({ card: "NVIDIA H200", entries: job.entries });
    await fill(page.locator("[data-view=frames]"), "33");
    seen.push(await line());
    await shot(`${job.name}-seconds`);
    const idle = { fp8: null, bf16: null };
    await tell({ card: "NVIDIA H200", entries: job.entries, backends: { fp8: "triton-int8", bf16: "triton-bf16" } });
    await tell({ card: "NVIDIA H200", entries: job.entries, backends: idle });
    await tell({ card: "NVIDIA H200", entries: [], backends: idle });
    measured.answer = { card: null, entries: [] };
    return { seen, asked };
  },

  async old() {
    const graph = workflow(job.three, { size: [420, 400] });
    const before = JSON.parse(JSON.stringify(graph.nodes[0]));
    await load(graph);
    const after = await page.evaluate(async () =>
      (await app.graphToPrompt()).workflow.nodes.find((n) => n.id === 1));
    await shot(`${job.name}-small`);
    const scroll = await page.locator(".fps-editor").evaluate((e) =>
      [e.scrollHeight, e.clientHeight, e.scrollWidth, e.clientWidth]);
    await fill(row(1, "until"), "0.55");
    return { before: [before.size, before.widgets_values, before.properties],
      after: [after.size, after.widgets_values, after.properties], edited: await text(),
      scroll };
  },

  async look() {
    await load(workflow(job.three, { properties: { fps_view: job.fpsView } }));
    await shot(`${job.name}-${job.theme}-${job.locale}`);
    const found = { custom: await violations() };
    await load(workflow(job.mild, { preset: "balanced" }));
    found.preset = await violations();
    await setValue("preset", "custom");
    await setValue("schedule", "0.5 sparse");
    await settle(500);
    found.broken = await violations();
    await load(workflow(job.three));
    await fill(row(0, "until"), "2");
    found.invalid = await violations();
    await shot(`${job.name}-${job.theme}-invalid`);
    found.texts = await page.locator(".fps-editor").innerText();
    const overflow = () => page.locator(".fps-editor").evaluate((e) => e.scrollWidth - e.clientWidth);
    found.overflow = [await overflow()];
    await load(workflow(job.words, { properties: { fps_view: job.fpsView } }));
    await fill(row(1, "number1"), "1.5");
    found.words = await violations();
    await row(2, "pattern").focus();
    await settle();
    await shot(`${job.name}-${job.theme}-words`);
    found.overflow.push(await overflow());
    // A selector's field that is too narrow for what it shows.
    found.clipped = await page.evaluate(() => [...document.querySelectorAll(".fps-table input, .fps-told p")]
      .filter((e) => e.getClientRects().length && e.scrollWidth > e.clientWidth)
      .map((e) => e.dataset.column ?? e.textContent));
    return found;
  },

  async image() {
    const graph = workflow(job.three, { properties: { fps_view: job.fpsView } });
    graph.nodes.pop();
    graph.links = [];
    await load(graph);
    await page.locator(".fps-plot [data-band='1']").click({ position: { x: 20, y: 10 } });
    await page.mouse.move(1300, 900);
    await page.evaluate(() => app.canvas.deselectAll?.());
    await settle(800);
    const shown = await page.locator(".lg-node", { has: page.locator(".fps-editor") }).boundingBox();
    const box = { x: shown.x - 14, y: shown.y - 14, width: shown.width + 28, height: shown.height + 28 };
    await page.screenshot({ path: job.image, clip: box });
    return { box };
  },
});
