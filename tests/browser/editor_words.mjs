// Checks of the schedule editor: selectors' words in place of a window, by keyboard, by mouse and as text.

import { workflow } from "./editor_page.mjs";

/** @param {any} of the page, the job and the tools of editor_page.mjs */
export const checks = ({ page, job, row, text, settle, load, fill, problem, setValue, shot }) => {
  /** The graph without the preview, whose own widgets take part in undo in older frontends. */
  function alone(schedule) {
    const graph = workflow(schedule);
    graph.nodes.pop();
    graph.links = [];
    graph.nodes[0].outputs[1].links = null;
    return graph;
  }
  const caption = () => page.locator(".fps-caption").innerText();
  const summary = () => page.locator(".fps-summary").innerText();
  /** Which fields of a row are shown, with what they hold. */
  const shown = (index) => page.evaluate((index) => Object.fromEntries(
    [...document.querySelectorAll(`.fps-editor [data-phase="${index}"] .fps-field`)]
      .filter((field) => field.getClientRects().length).map((field) => [field.dataset.column, field.value])), index);

  return {
    /** Choose a word, change its number, break it, undo, and go back to a window, without a pointer. */
    async wordKeys() {
      await load(alone(job.three));
      await settle(600);
      const seen = [];
      const note = async () => seen.push(await text());
      await row(1, "pattern").focus();
      await page.keyboard.type("svg"); // a select: type ahead
      await settle();
      await note();
      const fields = await shown(1);
      const said = [await caption(), await summary(), await row(1, "pattern").getAttribute("title")];
      await page.keyboard.press("Tab");
      const focused = await page.evaluate(() => document.activeElement.dataset.column);
      await page.keyboard.press("Control+a");
      await page.keyboard.type("0,25");
      await page.keyboard.press("Enter");
      await note();
      await page.keyboard.press("ArrowUp"); // 0.25 -> 0.26
      await note();
      const wrong = [];
      for (const value of ["1.5", "0", "", "x", "0.3 0.4"]) {
        await page.keyboard.press("Control+a");
        await page.keyboard.press("Delete");
        await page.keyboard.type(value);
        await page.keyboard.press("Enter");
        await settle(100);
        wrong.push([value, await problem(), await row(1, "number1").getAttribute("aria-invalid")]);
      }
      await note();
      await page.keyboard.press("Escape");
      wrong.push(await problem());
      await page.keyboard.press("Control+z");
      await settle(1200);
      await note();
      const back = await page.evaluate(() => document.activeElement.dataset.column);
      await row(1, "pattern").focus();
      await page.keyboard.type("win");
      await settle();
      await note();
      return { seen, fields, said, focused, wrong, back };
    },

    /** The same words with the pointer, and what the editor shows of each. */
    async wordMouse() {
      await load(workflow(job.three));
      const seen = {};
      for (const word of ["heads", "sta", "svg", "topk", "cdf"]) {
        await row(2, "pattern").selectOption(word);
        await row(2, "pattern").click();
        await page.keyboard.press("Escape");
        await settle(150);
        seen[word] = { line: (await text()).trim().split("\n").at(-1), fields: await shown(2), caption: await caption(),
          work: await page.locator(".fps-work").innerText(), summary: await summary(),
          share: await page.locator("[data-phase='2'] .fps-share").innerText(),
          tiles: await page.locator(".fps-tiles-box").isVisible(),
          dashed: await page.locator(".fps-plot .fps-unknown").count(),
          plot: await page.locator(".fps-plot").getAttribute("aria-label") };
      }
      await row(2, "pattern").selectOption("topk");
      await fill(row(2, "number1"), "x"); // what is wrong with one word's number is not carried to another's
      await fill(row(2, "number2"), "0.6");
      const both = [await problem(), await text()];
      await row(2, "pattern").selectOption("svg");
      const next = [await problem(), await row(2, "number1").inputValue()];
      await row(2, "pattern").selectOption("topk");
      await fill(row(2, "number2"), "0.6");
      const gate = [(await text()).trim().split("\n").at(-1), await caption()];
      await fill(row(2, "number2"), "");
      const without = (await text()).trim().split("\n").at(-1);
      await row(2, "pattern").selectOption("window");
      await settle(150);
      const window = [(await text()).trim().split("\n").at(-1), await page.locator(".fps-tiles-box").isVisible(),
        await page.locator(".fps-work").innerText()];
      await row(2, "pattern").selectOption("cdf");
      await row(2, "attention").selectOption("dense");
      const dense = [(await text()).trim().split("\n").at(-1), await shown(2)];
      return { seen, both, next, gate, without, window, dense };
    },

    /** Words in the text are shown in the table and written back as they were. */
    async wordText() {
      await load(workflow(job.words));
      const found = { rows: [], wrong: [] };
      for (let i = 0; i < 5; i++) found.rows.push(await shown(i));
      await shot(`${job.name}-words`);
      await fill(row(4, "w"), "50%");
      await row(4, "w").press("Alt+ArrowUp"); // moves below the third end
      found.text = await text();
      for (const each of job.wrongWords) {
        await setValue("schedule", each);
        await settle(450);
        found.wrong.push(await page.locator(".fps-error strong").innerText({ timeout: 2000 }).catch(() => ""));
      }
      await setValue("schedule", job.jsonWords);
      await settle(450);
      await fill(row(0, "number1"), "0.4");
      found.json = await text();
      return found;
    },

    /** A narrow node: nothing of the table leaves it. */
    async wordNarrow() {
      const found = [];
      for (const width of [420, 480, 560, 700]) {
        await load(workflow(job.words, { size: [width, 820] }));
        await row(2, "number1").focus();
        await settle();
        await shot(`${job.name}-words-${width}`);
        found.push(await page.evaluate(() => {
          const editor = document.querySelector(".fps-editor");
          const fields = [...editor.querySelectorAll(".fps-table .fps-field")].filter((e) => e.getClientRects().length);
          const pen = document.createElement("canvas").getContext("2d");
          /** Whether a field is too narrow for what it holds, a list for the longest that can be chosen. */
          const clipped = (field) => {
            if (field.tagName !== "SELECT") return field.scrollWidth > field.clientWidth;
            pen.font = getComputedStyle(field).font;
            const widest = Math.max(...[...field.options].map((option) => pen.measureText(option.text).width));
            return widest + 6 + 17 > field.clientWidth; // padding and arrow
          };
          return { over: editor.scrollWidth - editor.clientWidth,
            clipped: fields.filter(clipped).map((e) => `${e.dataset.column} ${e.value} ${e.clientWidth}`) };
        }));
      }
      return found;
    },
  };
};
