// A new user's way through the page: templates, a card, what is missing, Run, the report. Times as "TIME seconds what".
// usage: node first_run.mjs <server url> <chromium> <profile folder> <job.json>; waits on stdin for the models.
import { once } from "node:events";

import { job, launch, open } from "./browser.mjs";

const context = await launch();
const page = await context.newPage();
page.on("pageerror", (error) => console.log("pageerror: " + error));
page.on("console", (message) => {
  const text = message.text();
  if (/schema|fps|ComfyUI-FPSAttention/i.test(text) && message.type() !== "log") console.log(message.type() + ": " + text);
});
let begin = Date.now();
const lap = (what) => {
  console.log(`TIME ${(Date.now() - begin) / 1000} ${what}`);
  begin = Date.now();
};
const shot = (name) => page.screenshot({ path: `${job.pictures}/${name}.png` });

await open(page);
lap("page");
await page.waitForTimeout(3000);
if (!(await page.locator('[role="dialog"]').count())) await page.getByText("Templates", { exact: true }).first().click();
begin = Date.now();
await page.getByText(job.category).first().click({ timeout: 20000 });
await page.getByText(job.template).first().waitFor({ timeout: 20000 });
lap("templates");
await page.waitForTimeout(2000);
await shot("templates");
begin = Date.now();
await page.getByText(job.template).first().click();
await page.waitForFunction(() => (window.app.graph.nodes ?? window.app.graph._nodes)
  .some((node) => node.type === "FPSAttentionSchedule"), null, { timeout: 60000 });
lap("template opened");
await page.waitForTimeout(3000);
const details = page.getByText("View details").first();
if (await details.count()) await details.click();
await page.waitForTimeout(1500);
await shot("missing");
console.log("missing: " + JSON.stringify(await page.evaluate(() =>
  document.body.innerText.match(/[\w.]+\.safetensors/g)?.filter((x, i, all) => all.indexOf(x) === i) ?? [])));

console.log("MODELS");
await once(process.stdin, "data");
await page.evaluate(async (workflow) => {
  await window.app.refreshComboInNodes();
  await window.app.loadGraphData(workflow, true, true);
}, job.reduced);
await page.waitForTimeout(2500);
begin = Date.now();
await page.getByRole("button", { name: /^Run|Queue/ }).first().click();
await page.evaluate(async () => {
  for (;;) {
    const entries = Object.values(await (await fetch("/history")).json());
    if (entries.length && entries.at(-1).status.completed) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
});
lap("run to the video, 8 small steps");
await page.waitForTimeout(3000);
await page.evaluate(() => {
  const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
  const report = nodes.find((node) => node.type === "FPSAttentionReport"), ds = window.app.canvas.ds;
  ds.scale = 1.05;
  ds.offset[0] = -report.pos[0] + 120;
  ds.offset[1] = -report.pos[1] + 130;
  window.app.canvas.setDirty(true, true);
});
await page.waitForTimeout(2000);
await shot("report");
await context.close();
process.exit(0);
