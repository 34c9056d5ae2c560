// Checks of the schedule editor: presets, links and subgraphs, which decide what it shows and where it writes.

import { textNode, workflow } from "./editor_page.mjs";

/** @param {any} of the page, the job and the tools of editor_page.mjs */
export const checks = ({ page, job, errors, row, link, values, text, settle, load, fill, drag, middle, shot }) => {
  const sent = () => page.evaluate(async () => Object.values((await app.graphToPrompt()).output)
    .find((node) => node.class_type === "FPSAttentionSchedule")?.inputs);
  const note = () => page.locator(".fps-note").innerText();
  const focused = () => page.evaluate(() => {
    const { activeElement: at } = document;
    return [at.closest("[data-phase]")?.dataset.phase, at.dataset.column ?? Object.keys(at.dataset)[0]];
  });

  /** Open the subgraph of a node of the root, and wait for the editor in it. */
  async function enter(id) {
    await page.evaluate(async (id) => {
      const node = (app.rootGraph ?? app.graph).getNodeById(id);
      (app.canvas.openSubgraph ?? app.canvas.setGraph).call(app.canvas, node.subgraph, node);
      await new Promise((resolve) => setTimeout(resolve, 800));
      Object.assign(app.canvas.ds, { scale: 1 });
      [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [300, 90];
      app.canvas.setDirty(true, true);
    }, id);
    await page.waitForFunction(() => document.querySelector(".fps-editor")?.getBoundingClientRect().width > 50);
    await settle(800);
  }

  const outside = () => page.evaluate(() => (app.rootGraph ?? app.graph).getNodeById(1).widgets
    .filter((widget) => ["preset", "schedule"].includes(widget.name)).map((widget) => widget.value));

  return {
    /** The rows of a preset that the text lacks: edited by keyboard and by mouse. */
    async presetRows() {
      const seen = {};
      await load(workflow("0 dense", { preset: "balanced" }));
      await row(2, "w").focus();
      for (const key of ["ArrowUp", "ArrowUp", "ArrowUp"]) await page.keyboard.press(key);
      seen.arrows = [await values(), await focused()];
      await load(workflow("0 dense", { preset: "balanced" }));
      await fill(row(2, "h"), "45%");
      seen.typed = [await values(), await focused()];
      await load(workflow("0 dense", { preset: "balanced" }));
      await drag(await middle(row(2, "grip")), await middle(row(0, "grip")), 12);
      seen.dragged = [await values(), await page.locator(".fps-editor [data-dragged]").count()];
      return { ...seen, errors: errors.slice() };
    },

    /** A linked schedule that a preset overrules: neither is changed from here. */
    async presetLinked() {
      const graph = workflow(job.mild, { preset: "balanced" });
      graph.nodes.push(textNode(3, job.three));
      await load(graph);
      await link(3, 1, "schedule");
      await settle(800);
      const enabled = await page.locator(".fps-table input:enabled, .fps-table select:enabled, .fps-chip:enabled").count();
      return { note: await note(), rows: await page.locator("[data-phase]").count(), enabled, values: await values() };
    },

    /** A linked node whose own text comes from another one is not what runs. */
    async sourceLinked() {
      const graph = workflow(job.mild);
      graph.nodes.push(textNode(3, "0.00 dense"), textNode(4, job.three));
      await load(graph);
      await link(3, 1, "schedule");
      await link(4, 3, "value");
      await settle(800);
      return { note: await note(), shown: await page.locator(".fps-table").isVisible() };
    },

    /** The subgraph that the pack ships: what it offers outside is edited inside. */
    async blueprint() {
      await page.evaluate((graph) => app.loadGraphData(graph, true, true), job.blueprint);
      await settle(800);
      await enter(1);
      const before = [await note(), await page.locator("[data-phase]").count()];
      await fill(row(1, "w"), "35%");
      await shot(`${job.name}-blueprint`);
      const edited = [await sent(), await outside(), await focused()];
      await page.keyboard.press("Control+z");
      await settle(1500);
      const undone = [await sent(), await outside()];
      await page.evaluate(() => {
        const widget = (app.rootGraph ?? app.graph).getNodeById(1).widgets.find((each) => each.name === "preset");
        widget.value = "fast";
      });
      await settle(800);
      return { before, edited, undone, fast: [await note(), await page.locator("[data-phase]").count()] };
    },

    /** Two nodes of one subgraph hold two texts, so the editor inside belongs to neither. */
    async twice() {
      await page.evaluate(async (graph) => {
        await app.loadGraphData(graph, true, true);
        const copy = structuredClone(app.graph.nodes[0].serialize());
        const node = window.LiteGraph.createNode(copy.type);
        node.configure({ ...copy, id: undefined, pos: [700, 0] });
        app.graph.add(node);
      }, job.blueprint);
      await settle(800);
      const linked = await page.evaluate(() =>
        (app.rootGraph ?? app.graph).nodes[0].subgraph.nodes[0].isInputConnected(0));
      await enter(1);
      return { linked, note: await note(), shown: await page.locator(".fps-table").isVisible() };
    },
  };
};
