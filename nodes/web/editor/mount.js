// The schedule editor in any container. The text is the only truth: the editor reads it, and writes it whole.

import { pace, shortTime } from "../core/calibration.js";
import { MAX_PHASES, PRESETS } from "../core/known.js";
import { formatRows, moved, removed, roomOf, split, withRow } from "../core/rows.js";
import { ScheduleError, parse } from "../core/schedule.js";
import { html, percent, setText } from "./dom.js";
import { viewFields } from "./fields.js";
import { fieldValue, outlook, reading, viewOf } from "./model.js";
import { stepPlot } from "./plot.js";
import { words } from "./strings.js";
import { addStyle } from "./style.js";
import { changeOf, phaseTable } from "./table.js";
import { tilePicture } from "./tiles.js";

/** What the editor needs of whoever holds the text.
 * @typedef {object} Host
 * @property {() => {text: string, preset: string | null, linked: "text" | "preset" | "unused" | null,
 *   source: string | null}} read the text, the preset that is used in its place (or null), what a link decides ("unused":
 *   it would give the text, but a preset is chosen), and the name of where it comes from
 * @property {(text: string, final: boolean) => void} write `final` is false while something is being dragged
 * @property {() => unknown} readView  @property {(view: object) => void} writeView
 * @property {() => object} workflow what the workflow says of the view
 * @property {() => {card: string | null, entries: object[], backends?: object | null}} measured
 *   new answers come as new arrays
 * @property {string} locale */

/** Presets that stock weights should not run. */
const FOR_TRAINED = ["balanced", "fast"];

/** A number with its comma as a point, as in "0,85" and "33,5%"; other values as they are. */
const pointed = (value) => (typeof value === "string" ? value.replace(/^(\s*-?\d+),(\d+\s*%?\s*)$/, "$1.$2") : value);

/** Show the editor in `container`.
 * @param {HTMLElement} container @param {Host} host
 * @returns {{element: HTMLElement, update: () => void, destroy: () => void, setTheme: (light: boolean) => void,
 *   focus: (place: string) => void}} */
export function mount(container, host) {
  addStyle();
  const say = words(host.locale);
  let focus = -1;
  let dragging = false;
  let seen = "";
  /** @type {object[] | null} */
  let seenEntries = null;
  /** @type {any} */
  let state = { rows: [], focus: 0, readOnly: true };

  const table = phaseTable({ change, move, remove, focus: setFocus }, say);
  const plot = stepPlot({ dragEnd, focus: setFocus }, say);
  const tiles = tilePicture(say);
  const fields = viewFields(changeView, takeView, say);

  const chips = Object.keys(PRESETS).map((name) => html("button", { type: "button", class: "fps-chip",
    "data-preset": name, title: say("startTip", { preset: name }), onclick: () => startFrom(name) },
  name));
  const note = html("p", { class: "fps-note", hidden: true });
  const error = html("div", { class: "fps-error", role: "alert", hidden: true });
  const work = html("span", { class: "fps-work" });
  const workOf = html("span", { class: "fps-soft" });
  const stepsLine = html("span", { class: "fps-soft fps-right" });
  const seconds = html("p", { class: "fps-seconds" });
  const summary = html("div", { class: "fps-summary", "aria-live": "polite" }, work, workOf, stepsLine, seconds);
  const legend = html("span", { class: "fps-legend", "aria-hidden": "true" });
  const tilesTitle = html("span");
  const tilesPanel = html("section", { class: "fps-panel" }, html("h4", {}, tilesTitle), tiles.element);
  const panels = html("div", { class: "fps-panels" },
    html("section", { class: "fps-panel" }, html("h4", {}, html("span", {}, say("plotTitle")), legend), plot.element),
    tilesPanel);
  const said = html("span", { class: "fps-unseen", role: "status" });
  const add = html("button", { type: "button", class: "fps-add", title: say("addTip"), onclick: addPhase },
    `+ ${say("add")}`);
  const hint = html("span", { class: "fps-hint" }, say("hint"));
  const phases = html("div", { class: "fps-scroll" }, table.element, html("div", { class: "fps-under" }, add, hint));
  const body = html("div", { class: "fps-body" },
    html("div", { class: "fps-presets", role: "group", "aria-label": say("startFrom") },
      html("span", { "aria-hidden": "true" }, say("startFrom")), ...chips),
    note, error, summary, panels, phases, fields.element, said);
  const element = html("div", { class: "fps-editor", role: "group", "aria-label": say("editor") }, body);
  container.append(element);

  function changeView(more) {
    host.writeView({ ...viewOf(host.readView()), ...more });
    update();
  }

  /** Show the schedule for what the workflow makes, as far as it says so. */
  function takeView() {
    const view = viewOf(host.readView());
    const found = Object.entries(host.workflow()).filter(([name, value]) => fieldValue(name, value) !== null);
    const more = found.filter(([name, value]) => view[name] !== value);
    if (more.length) changeView(Object.fromEntries(more));
    const names = found.map(([name]) => say(name)).join(", ");
    setText(said, found.length ? say("taken", { names }) : say("nothingToTake"));
    fields.tell(said.textContent);
  }

  function startFrom(name) {
    host.write(PRESETS[name], true);
    update();
  }

  /** Write rows as text; the sentence that says why not, without its place, if Python would refuse them. */
  function write(rows, final = true) {
    const text = formatRows(rows);
    try {
      parse(text);
    } catch (problem) {
      if (problem instanceof ScheduleError) return problem.message.replace(/^line \d+(, column \d+)?: /, "");
      throw problem;
    }
    const rests = final && dragging;
    dragging = !final;
    host.write(text, final);
    update(rests);
    return null;
  }

  function change(index, column, value) {
    const { rows } = state;
    // A field that is being removed hands over what was typed into it.
    if (state.readOnly || !rows[index]) return null;
    value = pointed(value);
    if (column !== "until") {
      const row = { ...rows[index], ...changeOf(rows[index], column, value) };
      return write(withRow(rows, index, row));
    }
    // The text decides what a number is, so the row is written as it was typed.
    const lines = formatRows(rows.map((row) => ({ ...row, above: [], beside: "", below: [] }))).split("\n");
    lines[index + 2] = lines[index + 2].replace(/\S+/, () => value.trim() || "?");
    const { rows: read, error: sentence } = reading(lines.join("\n"));
    if (sentence) return sentence.replace(/^line \d+(, column \d+)?: /, "");
    return write(withRow(rows, index, { until: read[index].until }));
  }

  function move(from, to, final) {
    const { rows } = state;
    if (state.readOnly || to < 0 || to >= rows.length) return;
    const column = element.ownerDocument.activeElement?.dataset?.column;
    focus = to;
    if (from !== to || final) write(moved(rows, from, to), final);
    if (!final || from === to) return;
    table.focus(to, column ?? "grip");
    setText(said, say("moved", { from: from + 1, to: to + 1 }));
  }

  function remove(index) {
    if (state.rows.length < 2) return;
    write(removed(state.rows, index));
    setFocus(Math.min(index, state.rows.length - 1));
    table.focus(state.focus, "remove");
    setText(said, say("removed", { phase: index + 1 }));
  }

  function addPhase() {
    if (state.readOnly || !state.rows.length) return;
    const { rows } = state;
    const phase = state.focus + 1;
    const more = split(rows, state.focus, state.view.shift);
    if (more === rows) {
      setText(said, rows.length >= MAX_PHASES ? say("full", { most: MAX_PHASES }) : say("noRoom", { phase }));
      setText(hint, said.textContent);
      return;
    }
    write(more);
    table.focus(state.focus, "until");
    setText(said, say("added", { phase }));
  }

  /** The end of a phase follows the pointer between its neighbors' ends. */
  function dragEnd(index, sigma, final) {
    const room = roomOf(state.rows, index);
    if (!room) return;
    const [top, bottom] = [index ? room[0] - 0.01 : 1, room[1] + 0.01].map((end) => Math.round(end * 1e4) / 1e4);
    if (top >= bottom) write(withRow(state.rows, index, { until: Math.min(top, Math.max(bottom, sigma)) }), final);
  }

  function setFocus(index) {
    if (index === focus && index === state.focus) return;
    focus = index;
    update(true);
  }

  /** Read the text and the view again, and show what has changed. */
  function update(force = false) {
    const read = host.read();
    const view = viewOf(host.readView());
    const measured = host.measured();
    const key = JSON.stringify([read, view, measured.card, focus]);
    if (!force && key === seen && measured.entries === seenEntries) return;
    seen = key;
    seenEntries = measured.entries;
    const { text, rows, error: sentence } = phasesOf(read);
    // At first the first sparse phase: there is something to see in its tiles.
    if (focus < 0) focus = rows.findIndex((row) => row.attention !== "dense");
    focus = Math.max(0, Math.min(focus, rows.length - 1));
    const readOnly = read.linked !== null;
    state = { rows, view, focus, readOnly, ...(rows.length ? outlook(rows, view, measured) : {}) };
    show(read, sentence, text);
  }

  function phasesOf({ preset, text }) {
    if (preset === null) return { text, ...reading(text) };
    if (Object.hasOwn(PRESETS, preset)) return { text: PRESETS[preset], ...reading(PRESETS[preset]) };
    const known = ["custom", ...Object.keys(PRESETS)].join(", ");
    return { text: "", rows: [], error: `'${preset}' is no preset; choose one of ${known}.` };
  }

  function show(read, sentence, text) {
    // While a row is dragged the table stays where it is, below the note.
    if (!dragging) setText(note, noteOf(read));
    note.hidden = !note.textContent;
    const hiddenSource = (read.linked === "text" || read.linked === "preset") && read.source === null;
    const broken = sentence !== null && !hiddenSource;
    error.hidden = !broken && !state.problem;
    const told = broken ? [sentence, say("broken")] : [state.problem];
    if (!error.hidden && error.dataset.told !== told.join()) {
      error.dataset.told = told.join();
      error.replaceChildren(...told.map((words, i) => html(i ? "span" : "strong", {}, words)));
    }
    const usable = rows() && !hiddenSource;
    for (const part of [panels, summary]) part.hidden = !usable || Boolean(state.problem);
    phases.hidden = fields.element.hidden = !usable;
    for (const chip of chips) {
      chip.disabled = state.readOnly;
      chip.setAttribute("aria-pressed", String(!hiddenSource && (read.preset ?? named(text)) === chip.dataset.preset));
    }
    add.setAttribute("aria-disabled", String(state.readOnly || state.rows.length >= MAX_PHASES));
    setText(hint, state.readOnly ? "" : say("hint"));
    if (!usable) return;
    table.update(state);
    fields.update(state.view);
    if (state.problem) return;
    plot.update(state);
    tiles.update(state);
    const attention = state.rows[state.focus].attention;
    tilesPanel.dataset.attention = attention;
    setText(tilesTitle, say("tilesTitle", { phase: state.focus + 1 }));
    showSummary();
    showLegend();
  }

  const rows = () => state.rows.length > 0;
  const named = (text) => Object.keys(PRESETS).find((name) => PRESETS[name] === text) ?? null;

  function noteOf(read) {
    if (read.linked === "preset") return say("linkedPreset");
    if (read.linked === "unused") return say("linkUnused", { preset: read.preset });
    if (read.linked) return read.source ? say("linkedTo", { source: read.source }) : say("linked");
    const preset = Object.hasOwn(PRESETS, read.preset ?? "") ? read.preset : null;
    const shown = preset ?? named(read.text);
    return [preset && say("preset", { preset }), FOR_TRAINED.includes(shown) && say("forTrained", { preset: shown })]
      .filter(Boolean).join(" ");
  }

  function showSummary() {
    const dense = state.steps.filter((step) => step.attention === "dense").length;
    const number = (value) => value.toLocaleString("en-US");
    const selectors = state.open.map((selector) => say("quoted", { selector })).join(", ");
    const kind = state.work !== null ? "workOf" : state.about !== null ? "workAbout" : "workUnknown";
    const known = { workOf: state.work, workAbout: state.about }[kind];
    setText(work, kind === "workUnknown" ? "? %" : `${kind === "workAbout" ? "≈ " : ""}${percent(known)}`);
    setText(workOf, say(kind, { selectors }));
    setText(stepsLine, say("stepsLine", { steps: state.steps.length, dense, sparse: state.steps.length - dense }));
    stepsLine.title = say("tokensLine", { tokens: number(state.tokens), tile: state.tiling.tile.join("×") });
    const found = state.seconds;
    if (!found) {
      const why = state.staysDense ? "staysDense" : state.open.length ? "openSeconds" :
        state.otherSize ? "otherSize" : "noSeconds";
      return setText(seconds, say(why, { ...state.view, tokens: number(state.tokens) }));
    }
    const { denseSeconds, entry, ran, scaled, staysDense } = found;
    const time = (value) => shortTime(value, say("units").split(" "));
    const values = { seconds: time(found.seconds), card: entry.card, tokens: number(entry.tokens),
      backend: ran.join(", ") };
    const { kind: faster, times } = pace(denseSeconds / found.seconds);
    const what = denseSeconds === null ? say("secondsAlone", values) :
      say("seconds", { ...values, dense: time(denseSeconds), pace: say(faster, { times }) });
    const from = [` ${say(scaled ? "secondsScaled" : "secondsFrom", values)}`];
    if (staysDense) from.push(`. ${say("staysDense")}`);
    if (seconds.textContent !== what + from.join("")) seconds.replaceChildren(html("b", {}, what), ...from);
  }

  function showLegend() {
    const used = ["dense", "fp8", "bf16"].filter((kind) => state.rows.some((row) => row.attention === kind));
    const entries = used.map((kind) => [kind, kind === "dense" ? say("dense") : kind]);
    if (state.open.length) entries.push(["unknown", say("open")]);
    if (state.work !== null) entries.push(["work", say("sofar")]);
    if (legend.dataset.shown === String(entries)) return;
    legend.dataset.shown = String(entries);
    legend.replaceChildren(...entries.map(([kind, name]) =>
      html("span", {}, html("i", { class: `fps-key-${kind}` }), name)));
  }

  update(true);
  return {
    element,
    update: () => update(),
    setTheme: (light) => element.classList.toggle("fps-light", light),
    /** Put the focus on "row.column", or on another control by what its dataset says ("view.width"), as after an undo. */
    focus: (place) => {
      const [at, name] = place.split(".");
      if (/[0-9]/.test(at)) focus = Number(at);
      update(true);
      if (/[0-9]/.test(at)) table.focus(focus, name);
      else element.querySelector(`[data-${at}="${CSS.escape(name)}"]`)?.focus();
    },
    destroy: () => {
      plot.destroy();
      tiles.destroy();
      element.remove();
    },
  };
}
