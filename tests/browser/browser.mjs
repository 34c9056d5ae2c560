// Starts Chromium on the host's page, for the scripts of this folder, and keeps the page to this machine.
// Their command line: node <script> <server url> <chromium> <profile folder> <job.json>; playwright-core is taken from
// the folder that PLAYWRIGHT_FOLDER names.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(process.env.PLAYWRIGHT_FOLDER + "/");
const { chromium } = require("playwright-core");
const [address, executablePath, profile, path] = process.argv.slice(2);

/** The server, and what the script was told to do. */
export const url = address;
export const job = JSON.parse(readFileSync(path, "utf8"));

/** Where the page has the pack's own files from. */
const folder = (await (await fetch(`${url}/extensions`)).json())
  .find((file) => file.endsWith("/fps_schedule.js")).replace("fps_schedule.js", "");

/** Whether an error or its place names the pack's files. */
export const ours = (text) => text.includes(folder);

/** What goes wrong on a page from now on: errors that nothing caught, and the console's errors of ours. */
export function complaints(page) {
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error.stack ?? error)));
  page.on("console", (message) => {
    const said = `${message.text()} (${message.location().url})`;
    if (message.type() === "error" && ours(said)) errors.push(said);
  });
  return errors;
}

/** A browser that asks for nothing outside this machine.
 * @param {object} [options] of playwright's launchPersistentContext, beside the ones here */
export async function launch(options = {}) {
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    viewport: { width: 1920, height: 1080 },
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
    ...options,
  });
  await context.route("**/*", (route) =>
    new URL(route.request().url()).hostname === "127.0.0.1" ? route.continue() : route.abort());
  return context;
}

/** Open the host's page and wait until it knows a node of the pack. */
export async function open(page, type = "FPSAttentionApply") {
  await page.goto(url, { waitUntil: "domcontentloaded" });
  await page.waitForFunction(
    (type) => window.app?.graph && window.LiteGraph?.registered_node_types?.[type], type, { timeout: 120000 });
}
