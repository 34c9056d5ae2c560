// What the checks of the schedule editor share: finding its parts, loading graphs, and real keys and pointers.
import { readFileSync } from "node:fs";
import { join } from "node:path";

const AXE = join(process.env.AXE_FOLDER ?? "", "node_modules/axe-core/axe.min.js");

/** A workflow with the schedule node, and a text preview so that it can be run. */
export function workflow(schedule, { preset = "custom", size = [560, 820], properties = {}, pos = [340, 90] } = {}) {
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

/** A node that holds a text, to be linked to an input. */
export const textNode = (id, value) => ({ id, type: "PrimitiveStringMultiline", pos: [1000, 100 * id], size: [300, 200],
  flags: {}, order: 0, mode: 0, inputs: [], outputs: [{ name: "STRING", type: "STRING", links: null }], properties: {},
  widgets_values: [value] });

/** The tools for a page.
 * @param {import("playwright-core").Page} page @param {any} job */
export function tools(page, job) {
  const row = (index, column) => page.locator(`.fps-editor [data-phase="${index}"] [data-column="${column}"]`);
  const node = (id) => `(app.canvas.graph.getNodeById(${id}) ?? app.graph.getNodeById(${id}))`;
  const values = (id = 1) =>
    page.evaluate(`${node(id)}.widgets.filter((w) => w.serialize !== false).map((w) => w.value)`);
  const text = async (id) => (await values(id))[1];
  const settle = (ms = 400) => page.waitForTimeout(ms);

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

  /** Connect the first output of a node to another node's input, which may be a widget's. */
  const link = (from, to, name) => page.evaluate(([from, to, name]) => {
    const [source, target] = [app.graph.getNodeById(from), app.graph.getNodeById(to)];
    source.connect(0, target, target.inputs.findIndex((input) => (input.widget?.name ?? input.name) === name));
  }, [from, to, name]);

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
    if (!process.env.AXE_FOLDER) return null;
    await page.evaluate(readFileSync(AXE, "utf8"));
    return page.evaluate(async () => {
      const found = await window.axe.run(".fps-editor", { resultTypes: ["violations"] });
      return found.violations.map(({ id, nodes }) =>
        `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join(" | ")}`);
    });
  }

  return { row, link, values, text, settle, load, fill, drag, middle, problem, shot, setValue, violations };
}
