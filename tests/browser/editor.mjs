// Drives the schedule editor in the host's real page and prints one JSON line: what was found, by check.
// usage: node editor.mjs <server url> <chromium> <profile folder> <job.json>; playwright-core comes from
// PLAYWRIGHT_FOLDER, axe-core from AXE_FOLDER.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

import { checks as edits } from "./editor_edits.mjs";
import { checks as hard, countHeld } from "./editor_hard.mjs";
import { checks as others } from "./editor_host.mjs";
import { checks as linked } from "./editor_linked.mjs";
import { tools } from "./editor_page.mjs";
import { checks as slips } from "./editor_slips.mjs";
import { checks as words } from "./editor_words.mjs";

const require = createRequire(process.env.PLAYWRIGHT_FOLDER + "/");
const { chromium } = require("playwright-core");
const [url, executablePath, profile, jobPath] = process.argv.slice(2);
const job = JSON.parse(readFileSync(jobPath, "utf8"));

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
/** What the server would tell about the card. */
const measured = { answer: { card: null, entries: [] }, asked: 0 };
await context.route("**/fpsattention/calibration", async (route) => {
  measured.asked++;
  return route.fulfill((await measured.fulfill) ?? { json: measured.answer });
});
await context.grantPermissions(["clipboard-read", "clipboard-write"]);
const page = await context.newPage();
await countHeld(page);
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

const shared = { page, job, errors, measured, ...tools(page, job) };
const checks = { ...edits(shared), ...others(shared), ...hard(shared), ...linked(shared), ...slips(shared),
  ...words(shared) };
const results = {};
await open();
const startup = errors.splice(0);
const askedEarly = measured.asked;
for (const name of job.checks) {
  try {
    results[name] = await checks[name]();
  } catch (error) {
    results[name] = { failed: String(error.stack ?? error) };
    await shared.shot(`failed-${job.name}-${name}`).catch(() => {});
  }
}
console.log("FPS-PAGE " + JSON.stringify({ results, errors, startup, askedEarly }));
await context.close();
