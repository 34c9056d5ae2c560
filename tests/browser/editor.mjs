// Drives the schedule editor in the host's real page and prints one JSON line: what was found, by check.
// usage: node editor.mjs <server url> <chromium> <profile folder> <job.json>; playwright-core comes from
// PLAYWRIGHT_FOLDER, axe-core from AXE_FOLDER.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const require = createRequire(process.env.PLAYWRIGHT_FOLDER + "/");
const { chromium } = require("playwright-core");
const [url, executablePath, profile, jobPath] = process.argv.slice(2);
const job = JSON.parse(readFileSync(jobPath, "utf8"));
const axe = process.env.AXE_FOLDER &&
  readFileSync(join(process.env.AXE_FOLDER, "node_modules/axe-core/axe.min.js"), "utf8");

const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  viewport: { width: 1500, height: 1080 },
  deviceScaleFactor: job.images ? 2 : 1,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
await context.route("**/*", (route) =>
  new URL(route.request().url()).hostname === "127.0.0.1" ? route.continue() : route.abort());
let calibration = { card: null, entries: [] };
await context.route("**/fpsattention/calibration", (route) => route.fulfill({ json: calibration }));
if (job.selectors) {
  // A pack with selectors, as it would be generated.
  await context.route("**/core/known.js", async (route) => {
    const body = await (await route.fetch()).text();
    await route.fulfill({ contentType: "text/javascript", body: body
      .replace(/SELECTORS = .*/, `SELECTORS = ${JSON.stringify(job.selectors)};`)
      .replace(/ARGUMENTS = \{[^}]*\}/, 'ARGUMENTS = {"cdf": "0.9", "svg": "0.3"}') });
  });
}
await context.grantPermissions(["clipboard-read", "clipboard-write"]);
const page = await context.newPage();
const errors = [];
const ours = (text) => /fps_schedule|fpsattention|\/editor\/|\/core\//i.test(text);
page.on("pageerror", (error) => errors.push(String(error.stack)));
page.on("console", (message) => {
  const { url: at } = message.location();
  if (["error", "warning"].includes(message.type()) && (ours(message.text()) || ours(at))) {
    errors.push(`${message.text()} (${at})`);
  }
});

async function open() {
  await page.goto(url, { waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.FPSAttentionSchedule,
    null, { timeout: 120000 });
  await page.waitForTimeout(1500);
  await page.evaluate(() => document.querySelectorAll(".p-toast-close-button").forEach((button) => button.click()));
}

const row = (index, column) => page.locator(`.fps-editor [data-phase="${index}"] [data-column="${column}"]`);
const node = (id) => `(app.canvas.graph.getNodeById(${id}) ?? app.graph.getNodeById(${id}))`;
const values = (id = 1) =>
  page.evaluate(`${node(id)}.widgets.filter((w) => w.serialize !== false).map((w) => w.value)`);
const text = async (id) => (await values(id))[1];
const settle = (ms = 400) => page.waitForTimeout(ms);

/** A workflow with the schedule node, and a text preview so that it can be run. */
function workflow(schedule, { preset = "custom", size = [560, 820], properties = {}, pos = [340, 90] } = {}) {
  return {
    last_node_id: 2, last_link_id: 1, version: 0.4, groups: [], config: {},
    extra: { ds: { scale: 1, offset: [0, 0] } },
    nodes: [
      { id: 1, type: "FPSAttentionSchedule", pos, size, flags: {}, order: 0, mode: 0, inputs: [],
        outputs: [
          { name: "schedule", type: "FPS_SCHEDULE", links: null }, { name: "text", type: "STRING", links: [1] },
        ],
        properties: { "Node name for S&R": "FPSAttentionSchedule", ...properties },
        widgets_values: [preset, schedule] },
      { id: 2, type: "PreviewAny", pos: [1000, 90], size: [220, 120], flags: {}, order: 1, mode: 0,
        inputs: [{ name: "source", type: "*", link: 1 }], outputs: [], properties: {}, widgets_values: [] },
    ],
    links: [[1, 1, 1, 2, 0, "STRING"]],
  };
}

async function load(graph, scale = 1, offset = [0, 0]) {
  await page.evaluate(async ([graph, scale, offset]) => {
    await app.loadGraphData(graph, true, true);
    Object.assign(app.canvas.ds, { scale });
    [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = offset;
    app.canvas.setDirty(true, true);
  }, [graph, scale, offset]);
  await page.waitForFunction(() => document.querySelector(".fps-editor")?.getBoundingClientRect().width > 50);
  await settle(700);
}

async function fill(locator, value) {
  await locator.click();
  await locator.fill(value);
  await locator.press("Enter");
}

async function drag(from, to, steps = 6) {
  await page.mouse.move(...from);
  await page.mouse.down();
  await page.mouse.move(...to, { steps });
  await page.mouse.up();
  await settle(150);
}

const middle = async (locator) => {
  const box = await locator.boundingBox();
  return [box.x + box.width / 2, box.y + box.height / 2];
};
const problem = () => page.locator(".fps-problem:not([hidden])").allInnerTexts();
const shot = (name) => page.screenshot({ path: join(job.shots, `${name}.png`) });
const setValue = (name, value, id = 1) => page.evaluate(([id, name, value]) => {
  const found = app.graph.getNodeById(id).widgets.find((w) => w.name === name);
  found.value = value;
}, [id, name, value]);

/** What axe-core finds wrong in the editor, or null without axe-core. */
async function violations() {
  if (!axe) return null;
  await page.evaluate(axe);
  return page.evaluate(async () => {
    const found = await window.axe.run(".fps-editor", { resultTypes: ["violations"] });
    return found.violations.map((v) => `${v.id}: ${v.nodes.map((n) => `${n.html} ${n.failureSummary}`).join(" | ")}`);
  });
}

const checks = {
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
    await page.keyboard.press("Tab");
    await page.keyboard.press("Tab");
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

  async linked() {
    const graph = workflow(job.mild);
    graph.nodes.push({ id: 3, type: "PrimitiveStringMultiline", pos: [1000, 300], size: [300, 200], flags: {}, order: 0,
      mode: 0, inputs: [], outputs: [{ name: "STRING", type: "STRING", links: null }], properties: {},
      widgets_values: [job.three] });
    await load(graph);
    await page.evaluate(() => {
      const [target, source] = [app.graph.getNodeById(1), app.graph.getNodeById(3)];
      source.connect(0, target, target.inputs.findIndex((input) => (input.widget?.name ?? input.name) === "schedule"));
    });
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
    seen.push(["turbo", await page.locator(".fps-error strong").innerText({ timeout: 2000 }).catch(() => ""), await text(),
      await page.locator(".fps-table").isVisible()]);
    await setValue("preset", "custom");
    await page.locator(".fps-chip[data-preset=fast]").click();
    await settle();
    return { seen, mended: await text() };
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

  async seconds() {
    await load(workflow(job.mild));
    const line = () => page.locator(".fps-seconds").innerText();
    const seen = [await line()];
    const tell = async (next) => {
      calibration = next;
      await page.evaluate(() =>
        window.comfyAPI.api.api.dispatchEvent(new CustomEvent("execution_success", { detail: {} })));
      await settle();
      seen.push(await line());
    };
    await tell({ card: "NVIDIA H200", entries: job.entries });
    await tell({ card: "another", entries: job.entries });
    await tell({ card: "NVIDIA H200", entries: job.entries });
    await fill(page.locator("[data-view=frames]"), "33");
    seen.push(await line());
    await shot(`${job.name}-seconds`);
    calibration = { card: null, entries: [] };
    return { seen };
  },

  async selectors() {
    await load(workflow(job.three.replace("all 50% 40%", "svg 0.3")));
    const seen = [[await text(), await page.locator(".fps-work").innerText()]];
    const note = async () => seen.push([await text(), await page.locator(".fps-work").innerText()]);
    await fill(row(1, "argument"), "0.25");
    await note();
    await row(2, "pattern").selectOption("cdf");
    await note();
    await shot(`${job.name}-selectors`);
    await row(1, "pattern").selectOption({ index: 0 });
    await note();
    await fill(row(0, "until"), "0.97");
    await row(2, "attention").selectOption("dense");
    await note();
    return { seen, wrong: await violations() };
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
    found.overflow = await page.locator(".fps-editor").evaluate((e) => e.scrollWidth - e.clientWidth);
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
};

const results = {};
await open();
const startup = errors.splice(0);
for (const name of job.checks) {
  try {
    results[name] = await checks[name]();
  } catch (error) {
    results[name] = { failed: String(error.stack ?? error) };
    await shot(`failed-${job.name}-${name}`).catch(() => {});
  }
}
console.log("FPS-PAGE " + JSON.stringify({ results, errors, startup }));
await context.close();
