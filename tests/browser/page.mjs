// Opens workflows in the host's real page and prints one JSON line about each.
// usage: node page.mjs <server url> <chromium> <profile folder> <jobs.json>
import { readFileSync } from "node:fs";

import { complaints, job as jobs, launch, open, ours } from "./browser.mjs";

const context = await launch();
const page = await context.newPage();
const errors = complaints(page);
await open(page);
await page.waitForTimeout(1500);
const before = errors.length;

const results = {};
for (const job of jobs) {
  const seen = errors.length;
  const workflow = JSON.parse(readFileSync(job.path, "utf8"));
  results[job.name] = await page.evaluate(async (workflow) => {
    const app = window.app;
    await app.loadGraphData(workflow, true, true);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const nodes = app.graph.nodes ?? app.graph._nodes;
    const registered = window.LiteGraph.registered_node_types;
    const { output, workflow: saved } = await app.graphToPrompt();
    return {
      missing: nodes.filter((n) => !registered[n.type]).map((n) => n.type),
      count: nodes.length,
      output,
      saved: saved.nodes.map((n) => ({ id: n.id, type: n.type, widgets_values: n.widgets_values ?? [], properties: n.properties })),
      drawn: [...document.querySelectorAll("[data-node-id]")].map((e) => {
        const box = e.getBoundingClientRect(), scale = app.canvas.ds.scale;
        return { id: e.dataset.nodeId, width: box.width / scale, height: box.height / scale };
      }),
      sizes: nodes.map((n) => ({ id: n.id, type: n.type, pos: [...n.pos], size: [...n.size], title: n.title })),
      complaints: document.body.innerText.match(/\d+ (issues? found|errors?)|missing (nodes?|models?)/gi) ?? [],
      dialogs: [...document.querySelectorAll('[role="dialog"]')].map((d) => d.textContent.trim().slice(0, 300)),
    };
  }, workflow);
  if (job.run) {
    results[job.name].history = await page.evaluate(async () => {
      const before = Object.keys(await (await fetch("/history")).json()).length;
      await window.app.queuePrompt(0, 1);
      for (let i = 0; i < 600; i++) {
        const history = await (await fetch("/history")).json();
        const entries = Object.values(history);
        if (entries.length > before) return entries.at(-1);
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
      return null;
    });
    await page.waitForTimeout(2000);
  }
  results[job.name].errors = errors.slice(seen);
  if (job.screenshot) {
    await page.evaluate(() => { window.app.canvas.setDirty?.(true, true); });
    if (job.fit) {
      await page.evaluate((fit) => {
        const ds = window.app.canvas.ds;
        if (fit === true) {
          // The whole graph, in the middle of the space beside the page's left bar.
          const nodes = (window.app.graph.nodes ?? window.app.graph._nodes);
          const left = Math.min(...nodes.map((n) => n.pos[0])) - 40, top = Math.min(...nodes.map((n) => n.pos[1])) - 120;
          const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])) + 40;
          const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1])) + 40;
          const room = { width: window.innerWidth - 80, height: window.innerHeight - 120 };
          const scale = Math.min(room.width / (right - left), room.height / (bottom - top));
          fit = { scale, x: -left + (70 + (room.width - (right - left) * scale) / 2) / scale,
            y: -top + (60 + (room.height - (bottom - top) * scale) / 2) / scale };
        }
        ds.scale = fit.scale; ds.offset[0] = fit.x; ds.offset[1] = fit.y;
        window.app.canvas.setDirty(true, true);
      }, job.fit);
    }
    await page.waitForTimeout(1200);
    await page.screenshot({ path: job.screenshot });
  }
}
console.log("FPS-PAGE " + JSON.stringify({ results, startup: errors.slice(0, before).filter(ours) }));
await context.close();
