// What the page offers of the pack beside its nodes: the subgraph in the search, and the help page of a node.
// usage: node pack.mjs <server url> <chromium> <profile folder> <job.json>; the job names the folder for `pictures`.
import { complaints, job, launch, open, ours } from "./browser.mjs";

const { pictures } = job;
const context = await launch();
const page = await context.newPage();
const errors = complaints(page);
await open(page);
await page.waitForTimeout(3000);
const before = errors.length;

// The subgraph, as a person adds it: double click, its name, Enter.
await page.evaluate(() => window.app.graph.clear());
await page.mouse.dblclick(960, 540);
await page.waitForTimeout(1000);
await page.keyboard.type("Wan2.1 + FPSAttention", { delay: 15 });
await page.waitForTimeout(1500);
await page.keyboard.press("Enter");
await page.waitForTimeout(1500);
await page.mouse.click(960, 500);
await page.waitForTimeout(1500);
const blueprint = await page.evaluate(async () => {
  const graph = window.app.graph, [node] = graph.nodes ?? graph._nodes;
  if (!node) return null;
  const loader = window.LiteGraph.createNode("UNETLoader"), sampling = window.LiteGraph.createNode("ModelSamplingSD3");
  graph.add(loader); graph.add(sampling);
  loader.connect(0, node, 0);
  node.connect(0, sampling, 0);
  const { output } = await window.app.graphToPrompt();
  return {
    title: node.title, widgets: (node.widgets ?? []).map((w) => ({ name: w.name, value: w.value })),
    inputs: node.inputs.map((i) => i.name), outputs: node.outputs.map((o) => o.name), output,
  };
});
await page.screenshot({ path: pictures + "/blueprint.png" });

// The help page, through the button of the selected node.
const help = {};
for (const type of ["FPSAttentionSchedule", "FPSAttentionReport"]) {
  await page.evaluate((type) => {
    window.app.graph.clear();
    const node = window.LiteGraph.createNode(type);
    node.pos = [200, 200];
    window.app.graph.add(node);
    window.app.canvas.ds.scale = 0.8;
    window.app.canvas.selectNode(node);
    window.app.canvas.setDirty(true, true);
  }, type);
  await page.waitForTimeout(1200);
  const button = page.locator('[data-testid="info-button"]').first();
  if (await button.count()) await button.click();
  await page.waitForTimeout(2000);
  help[type] = await page.evaluate(() => {
    const pane = document.querySelector(".node-help-content");
    return {
      text: pane?.innerText ?? null,
      pictures: [...(pane?.querySelectorAll("img") ?? [])].map((i) => ({ src: i.src, width: i.naturalWidth })),
    };
  });
  await page.screenshot({ path: `${pictures}/help-${type}.png` });
}
// The page looks for a help page in its own language first, English as well, and takes the general one without it.
const found = errors.filter((error, i) => (i >= before || ours(error)) && !/404.*\/docs\/\w+\/en\.md/.test(error));
console.log("FPS-PAGE " + JSON.stringify({ blueprint, help, errors: found }));
await context.close();
