// Checks of the schedule editor: keys and pointers that come at an awkward moment, and what is drawn.

import { workflow } from "./editor_page.mjs";

/** @param {any} of the page, the job and the tools of editor_page.mjs */
export const checks = ({ page, job, row, text, settle, load, fill, drag, middle, problem }) => {
  const focus = () => page.evaluate(() => {
    const { activeElement: at } = document;
    return at.dataset.view ?? at.dataset.preset ?? at.dataset.column ?? at.tagName;
  });

  return {
    /** The host's keys that run and save take what was typed. */
    async runKey() {
      await load(workflow(job.three));
      const seen = [];
      await page.evaluate(() => {
        window.fpsSent = [];
        const queue = app.queuePrompt;
        app.queuePrompt = async () => {
          window.fpsSent.push((await app.graphToPrompt()).output["1"].inputs.schedule);
        };
        window.fpsRestore = () => { app.queuePrompt = queue; };
      });
      await row(1, "w").click();
      await row(1, "w").fill("33%");
      await page.keyboard.press("Control+Enter");
      await settle(600);
      seen.push(await text());
      const sent = await page.evaluate(() => { window.fpsRestore(); return window.fpsSent; });
      await row(1, "h").click();
      await row(1, "h").fill("44%");
      await row(1, "h").evaluate((field) => field.dispatchEvent(
        new KeyboardEvent("keydown", { key: "s", ctrlKey: true, cancelable: true })));
      seen.push(await text());
      return { seen, sent };
    },

    /** A row that is moved takes along what is being typed in it, unless that cannot be used. */
    async moveTyping() {
      await load(workflow(job.three));
      await row(1, "w").click();
      await row(1, "w").fill("33%");
      await page.keyboard.press("Alt+ArrowDown");
      const moved = await text();
      await row(2, "w").click();
      await row(2, "w").fill("nothing");
      await page.keyboard.press("Alt+ArrowUp");
      return { moved, after: await text(), problem: await problem() };
    },

    /** An end that is dragged against its neighbor is a short number. */
    async neighbor() {
      const seen = [];
      for (const lower of ["0.06", "0.29", "0.57"]) {
        await load(workflow(job.three.replace("0.60", lower)));
        const end = await middle(page.locator(".fps-editor [data-end='0'] .fps-catch"));
        await drag(end, [end[0] + 400, end[1]], 10);
        seen.push(await text());
      }
      return { seen };
    },

    /** A second finger neither moves nor ends what the first one drags. */
    async twoFingers() {
      await load(workflow(job.three));
      const end = page.locator(".fps-editor [data-end='0'] .fps-catch");
      const [x, y] = await middle(end);
      await page.mouse.move(x, y);
      await page.mouse.down();
      await page.mouse.move(x + 20, y, { steps: 3 });
      await settle(100);
      const one = await text();
      await end.evaluate(async (element, [x, y]) => {
        for (const kind of ["pointermove", "pointerup"]) {
          element.dispatchEvent(new PointerEvent(kind, { pointerId: 99, bubbles: true, clientX: x + 90, clientY: y }));
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      }, [x, y]);
      const two = await text();
      await page.mouse.move(x + 40, y, { steps: 3 });
      await page.mouse.up();
      await settle(150);
      return { one, two, after: await text() };
    },

    /** A comma where a person would write one. */
    async comma() {
      await load(workflow(job.three));
      await fill(row(0, "until"), "0,85");
      await fill(row(1, "w"), "33,5%");
      return { text: await text() };
    },

    /** After an undo the focus is where it was, also outside the table. */
    async undoFocus() {
      const graph = workflow(job.three);
      graph.nodes.pop();
      graph.links = [];
      graph.nodes[0].outputs[1].links = null;
      await load(graph);
      await settle(600);
      const seen = [];
      await fill(page.locator("[data-view=steps]"), "7");
      await page.keyboard.press("Control+z");
      await settle(1500);
      seen.push(await focus());
      await page.locator(".fps-chip[data-preset=fast]").focus();
      await page.keyboard.press("Enter");
      await settle(600);
      await page.keyboard.press("Control+z");
      await settle(1500);
      seen.push(await focus());
      return { seen, text: await text() };
    },

    /** Notes in the lines that the editor writes anew. */
    async notes() {
      await load(workflow(job.notes));
      await fill(row(0, "until"), "0.85");
      return { text: await text() };
    },

    /** The page's panel of properties writes a width into every widget; the editor keeps the node's. */
    async panel() {
      await load(workflow(job.three));
      const width = () => page.evaluate(() => document.querySelector(".fps-editor").getBoundingClientRect().width);
      const before = await width();
      await page.evaluate(async () => {
        const node = app.graph.getNodeById(1);
        node.widgets.at(-1).width = 120;
        app.canvas.selectNode(node);
        app.canvas.setDirty(true, true);
      });
      await page.locator('button[aria-label="Toggle properties panel"]').click().catch(() => {});
      await settle(800);
      await page.evaluate(() => { app.graph.getNodeById(1).setSize([560, 830]); app.canvas.setDirty(true, true); });
      await settle(800);
      const after = await width();
      await page.locator('button[aria-label="Toggle properties panel"]').click().catch(() => {});
      return { before, after };
    },

    /** The video that the workflow makes, taken over by a button. */
    async workflowView() {
      const graph = workflow(job.three);
      const sizes = { type: "EmptyHunyuanLatentVideo", pos: [1000, 300], size: [300, 150], flags: {}, order: 0, mode: 0,
        inputs: [], outputs: [{ name: "LATENT", type: "LATENT", links: null }], properties: {} };
      graph.nodes.push({ ...sizes, id: 3, widgets_values: [640, 368, 33, 1] });
      await load(graph);
      const shown = () => page.evaluate(() => Object.fromEntries(
        [...document.querySelectorAll(".fps-editor input[data-view]")].map((input) => [input.dataset.view, input.value])));
      const before = await shown();
      await page.locator(".fps-take").click();
      await settle();
      const [taken, words] = [await shown(), await page.locator(".fps-view-name").innerText()];
      await page.evaluate(() => app.graph.remove(app.graph.getNodeById(3)));
      await page.locator(".fps-take").click();
      await settle();
      return { before, taken, words, nothing: await page.locator(".fps-view-name").innerText(), text: await text() };
    },

    /** FPSAttention Check shows its text on the node, to copy. */
    async checkText() {
      await page.evaluate(() => {
        app.graph.clear();
        const node = window.LiteGraph.createNode("FPSAttentionCheck");
        node.pos = [340, 90];
        app.graph.add(node);
        Object.assign(app.canvas.ds, { scale: 1 });
        [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [0, 0];
        app.canvas.setDirty(true, true);
      });
      const shown = page.locator("pre[aria-label]");
      await shown.waitFor();
      const empty = await shown.innerText();
      await page.evaluate(() => app.queuePrompt(0, 1));
      await page.waitForFunction(() => document.querySelector("pre[aria-label]").innerText.includes("What to do"));
      const text = await shown.innerText();
      await page.locator("pre[aria-label] + button").click();
      await settle(300);
      const copied = await page.evaluate(() => navigator.clipboard.readText());
      const size = await page.evaluate(() => [...app.graph.nodes[0].size]);
      await page.screenshot({ path: `${job.shots}/${job.name}-check.png` });
      return { empty, text, copied, size, saved: await page.evaluate(() => app.graph.serialize().nodes[0].widgets_values ?? []) };
    },

    /** Heights of bars and of the line, which bars are hatched, and the box of what a tile sees, as they are drawn. */
    async drawing() {
      await load(workflow(job.three, { properties: { fps_view: job.fpsView } }));
      await row(1, "w").focus();
      await settle();
      return page.evaluate(() => {
        const numbers = (element, ...names) => names.map((name) => Number(element.getAttribute(name)));
        const all = (selector) => [...document.querySelectorAll(`.fps-editor ${selector}`)];
        const scale = all(".fps-plot .fps-grid").map((line) => numbers(line, "y1")[0]);
        return {
          zero: scale[0], hundred: scale.at(-1),
          bars: all(".fps-plot [data-step]").map((bar) => ({
            box: numbers(bar, "y", "height"), hatched: (bar.getAttribute("fill") ?? "").startsWith("url("),
            bright: !bar.classList.contains("fps-dim"), seen: getComputedStyle(bar).fill !== "none",
            says: bar.textContent,
          })),
          line: all("polyline.fps-line")[0].getAttribute("points").split(" ").map((point) => point.split(",").map(Number)),
          tiles: [".fps-unlit", ".fps-lit"].map((kind) =>
            all(`.fps-tiles-box ${kind}`).map((box) => numbers(box, "x", "y", "width", "height"))),
          steps: document.querySelector(".fps-right").textContent,
        };
      });
    },
  };
};
