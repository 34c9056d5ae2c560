// Edits the schedule of workflows in the host's real page as a person would, saves, reloads and queues them.
// usage: node workflow_edits.mjs <server url> <chromium> <profile folder> <job.json>: per workflow its name, path, the id
// of its schedule node, and its prompt as small as can be run. Prints one JSON line: what was found, by workflow.
import { readFileSync } from "node:fs";

import { complaints, job, launch, open, ours } from "./browser.mjs";
import { tools } from "./editor_page.mjs";

const context = await launch();
const page = await context.newPage();
const errors = complaints(page);
const { row, values, load, drag, middle, settle } = tools(page, job);

/** What the page sent last, and what the server got in its place. */
let prompt = null, small = null;
await page.route("**/prompt", async (route) => {
  if (route.request().method() !== "POST") return route.continue();
  const body = route.request().postDataJSON();
  prompt = body.prompt;
  body.prompt = shrunk(prompt);
  return route.continue({ postData: JSON.stringify(body) });
});

/** The small form of a prompt, with our nodes as the page sent them. */
function shrunk(sent) {
  return Object.fromEntries(Object.entries(small).map(([id, node]) =>
    [id, node.class_type.startsWith("FPSAttention") ? sent[id] : node]));
}

/** Load a graph with the node of the id in the middle of the page. */
async function show(graph, id) {
  const [x, y] = graph.nodes.find((node) => node.id === id).pos;
  await load(graph, 1, [500 - x, 110 - y]);
}

async function byKeyboard() {
  await row(1, "w").focus();
  await page.keyboard.press("Control+a");
  await page.keyboard.type("45%");
  await page.keyboard.press("Tab"); // the value is taken when the field is left
  await settle();
}

async function byMouse() {
  const end = await middle(page.locator(".fps-editor [data-end='0'] .fps-catch"));
  await drag(end, [end[0] + 60, end[1]]);
  await settle();
}

const queue = () => page.evaluate(async () => {
  const entries = async () => Object.values(await (await fetch("/history")).json());
  const before = (await entries()).length;
  await window.app.queuePrompt(0, 1);
  for (let i = 0; i < 300; i++) {
    const now = await entries();
    if (now.length > before) return now.at(-1);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  return null;
});

async function check({ path, id, small: reduced }) {
  small = reduced;
  const seen = errors.length;
  await show(JSON.parse(readFileSync(path, "utf8")), id);
  const found = { opened: await values(id) };
  await byKeyboard();
  found.keyboard = await values(id);
  await byMouse();
  found.mouse = await values(id);
  const saved = await page.evaluate(() => JSON.stringify((app.rootGraph ?? app.graph).serialize()));
  await page.evaluate(() => app.graph.clear());
  await page.waitForFunction(() => !document.querySelector(".fps-editor"));
  await show(JSON.parse(saved), id);
  found.saved = JSON.parse(saved).nodes.find((node) => node.id === id).widgets_values;
  found.reloaded = await values(id);
  found.shown = [await row(0, "until").inputValue(), await row(1, "w").inputValue()];
  const history = await queue();
  return { ...found, sent: prompt, got: history?.prompt[2][id].inputs, status: history?.status,
    outputs: history?.outputs, errors: errors.slice(seen) };
}

const results = {};
await open(page, "FPSAttentionSchedule");
await settle(1500);
const startup = errors.filter(ours);
for (const workflow of job.workflows) {
  results[workflow.name] = await check(workflow).catch((error) => ({ failed: String(error.stack ?? error) }));
}
console.log("FPS-PAGE " + JSON.stringify({ results, startup }));
await context.close();
