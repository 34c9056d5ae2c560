// Puts the schedule editor under the text of the node FPSAttentionSchedule. Without this file the node is the same,
// with its text alone: the editor holds no value of its own, and neither the prompt nor the saved widgets know it.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { mount } from "./editor/mount.js";
import { viewFrom } from "./editor/workflow.js";

const NODE = "FPSAttentionSchedule";
const NAME = "fps_schedule_editor";
const HOLDER = "fps-holder";
const CUSTOM = "custom";
const SIZE = [560, 820];
const LEAST_HEIGHT = 190;
const TEXT_HEIGHT = 112;
const AROUND = 290;
const LOOK = 300;
const RESTORE = 3000;

/** What the host's card has measured. The server may start Triton to answer, so it is asked when an editor is shown
 * first, and again after a run. */
const measured = { card: null, entries: [], backends: null };
let current = false;
let asked = 0;
let answered = 0;

/** Whether an entry is what seconds can be worked out from; the file is the user's, who may have edited it. */
function usable(entry) {
  const { points, tokens, heads, head_dim: headDim, dense_ms: dense } = entry ?? {};
  const finite = (...values) => values.every(Number.isFinite);
  return finite(tokens, heads, headDim) && Math.min(tokens, heads) > 0 && (dense === null || finite(dense)) &&
    Array.isArray(points) && points.length > 0 && points.every((point) => Array.isArray(point) && finite(...point));
}

async function askMeasured() {
  current = true;
  const turn = ++asked;
  try {
    const response = await api.fetchApi("/fpsattention/calibration");
    if (!response.ok) return;
    const { card, entries, backends } = await response.json();
    if (turn < answered) return; // a slow answer does not replace a newer one
    answered = turn;
    Object.assign(measured, { card: card ?? null, entries: Array.isArray(entries) ? entries.filter(usable) : [],
      backends: backends ?? null });
    for (const { editor } of open.values()) editor.update();
  } catch {
    // Without the answer the editor shows no seconds.
  }
}

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** The link that a widget's value comes from, or null. */
function linkOf(node, name) {
  const slot = node.inputs?.findIndex((input) => (input.widget?.name ?? input.name) === name) ?? -1;
  return slot >= 0 && node.graph && node.isInputConnected(slot) ? node.getInputLink(slot) : null;
}

/** The nodes of the workflow, with those of its subgraphs. */
function allNodes() {
  const root = app.rootGraph ?? app.graph;
  const graphs = [root, ...(root?.subgraphs?.values?.() ?? [])];
  return graphs.flatMap((graph) => graph?.nodes ?? graph?._nodes ?? []);
}

/** The nodes that stand for a subgraph, wherever in the workflow. */
const standIns = (subgraph) => allNodes().filter((node) => node.subgraph === subgraph);

/** Where a widget's value is: a node and its widget, also the one outside that a subgraph shows in its place; or the link
 * from another node that decides it. What several nodes show for one subgraph has several values, so it is a link too. */
function held(node, name) {
  const link = linkOf(node, name);
  if (link === null) return { node, widget: widgetOf(node, name), link };
  if (String(link.origin_id) !== String(node.graph.inputNode?.id)) return { node, widget: null, link };
  const input = node.graph.inputs?.[link.origin_slot]?.name;
  const [outside, another] = standIns(node.graph);
  const slot = outside?.inputs?.find((each) => each.name === input);
  return slot?.widget && !another ? held(outside, slot.widget.name) : { node, widget: null, link };
}

const HOLDS_TEXT = ["PrimitiveNode", "PrimitiveString", "PrimitiveStringMultiline"];

/** The text of the node that a link comes from, if it is one that only holds text. */
function linkedText(node, link) {
  const source = node.graph.getNodeById(link.origin_id);
  if (!HOLDS_TEXT.includes(source?.type) || !source.widgets?.length) return null;
  const value = held(source, source.widgets[0].name).widget?.value;
  return typeof value === "string" ? { text: value, source: source.title ?? source.type } : null;
}

function readNode(node) {
  const [text, chosen] = [held(node, "schedule"), held(node, "preset")];
  const preset = typeof chosen.widget?.value === "string" && chosen.widget.value !== CUSTOM ? chosen.widget.value : null;
  const found = { text: String(text.widget?.value ?? ""), preset, linked: null, source: null };
  if (chosen.link) return { ...found, linked: "preset" };
  if (!text.link) return found;
  return preset === null ? { ...found, linked: "text", ...linkedText(text.node, text.link) } : { ...found, linked: "unused" };
}

/** Do `change` as one step of the host's undo. */
function asOneChange(node, change) {
  app.canvas?.emitBeforeChange?.();
  try {
    change();
  } finally {
    app.canvas?.emitAfterChange?.();
    node.setDirtyCanvas?.(true, true);
  }
}

function assign({ node, widget }, value) {
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
}

/** The text comes first: the editor shows what is chosen at every moment, and in between that is still the preset. */
function writeText(node, text) {
  assign(held(node, "schedule"), text);
  assign(held(node, "preset"), CUSTOM);
}

/** Where the focus is, and where it goes again when an undo has replaced the node. */
let place = null;
let restore = null;

/** Keys inside the editor stay there: Delete must not delete the node, nor Ctrl+V paste one. What is meant for the host
 * passes: running, saving, and undo where no typing is to be undone. */
function keepKeys(event) {
  const command = event.ctrlKey || event.metaKey;
  const field = event.target;
  if (command && (event.key === "Enter" || event.key.toLowerCase() === "s")) return;
  event.stopPropagation();
  const key = event.key.toLowerCase();
  if (!command || event.altKey || (key !== "z" && key !== "y")) return;
  if (place) restore = { ...place, until: Date.now() + RESTORE };
  const typing = field.tagName === "INPUT" && field.value !== field.dataset.shown;
  // The host leaves these keys to inputs, where there is nothing to undo once a value is taken.
  if (field.tagName !== "INPUT" || typing) return;
  event.preventDefault();
  app.extensionManager?.command?.execute?.(key === "y" || event.shiftKey ? "Comfy.Redo" : "Comfy.Undo");
}

const scrolls = (element) => element.scrollHeight > element.clientHeight + 1;

/** The wheel zooms the canvas, unless the editor is being used and has something to scroll. */
function passWheel(event, element) {
  if (scrolls(element) && !event.ctrlKey && element.contains(document.activeElement)) return event.stopPropagation();
  if (app.canvas?.constructor && !window.LiteGraph?.vueNodesMode) {
    event.preventDefault();
    event.stopPropagation();
    app.canvas.processMouseWheel(event);
  }
}

let pen = null;

/** Whether the host's palette is a light one; its menus' color is what every palette defines. */
function isLight() {
  pen ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#000";
  pen.fillStyle = getComputedStyle(document.body).getPropertyValue("--comfy-menu-bg").trim();
  pen.fillRect(0, 0, 1, 1);
  const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140;
}

/** Nodes 2.0 keeps a node's elements where an undo, or a graph with the same node id, has put another node in its
 * place, and then goes on showing the former widget. */
function takePlace(node, container) {
  if (!node.graph || node.graph !== app.canvas?.graph) return;
  const shown = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`);
  shown?.querySelector(`.${HOLDER}`)?.replaceWith(container);
}

function restoreFocus(node) {
  const editor = open.get(node)?.editor;
  if (!editor || !restore || restore.id !== node.id || Date.now() > restore.until) return;
  const { at, until } = restore;
  restore = null;
  const put = () => {
    if (editor.element.isConnected && editor.element.getClientRects().length) editor.focus(at);
    else if (Date.now() < until) requestAnimationFrame(put);
  };
  requestAnimationFrame(put);
}

/** Add the widget that holds the editor. */
function addHolder(node) {
  const container = document.createElement("div");
  container.className = HOLDER;
  // Nodes 2.0 never makes a node smaller than its content, so the editor fills the node's height without adding to it:
  // the host sets --node-height, also to 0 while it measures. In the canvas renderer the host gives the height.
  container.style.cssText =
    `position:relative;min-height:max(${LEAST_HEIGHT}px, calc(var(--node-height, 0px) - ${AROUND}px))`;
  const text = widgetOf(node, "schedule");
  const widget = node.addDOMWidget(NAME, "fps_schedule_editor", container, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => LEAST_HEIGHT,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  // The page's panel of properties writes its own width into the widgets that it lists.
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
  if (text?.options) text.options.getMaxHeight = () => TEXT_HEIGHT;
  return container;
}

const localeNow = () => app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en";

/** Show the editor of a node in its holder. */
function addEditor(node, container, locale) {
  const editor = mount(container, {
    locale,
    read: () => readNode(node),
    write: (value, final) => (final ? asOneChange(node, () => writeText(node, value)) : writeText(node, value)),
    readView: () => node.properties?.fps_view,
    writeView: (view) => asOneChange(node, () => node.setProperty("fps_view", view)),
    measured: () => measured,
    workflow: () => viewFrom(allNodes(), (each, name) => linkOf(each, name) !== null),
  });
  const { element } = editor;
  element.addEventListener("keydown", keepKeys);
  element.addEventListener("wheel", (event) => passWheel(event, element), { passive: false });
  for (const name of ["pointerdown", "mousedown", "dblclick", "contextmenu"]) {
    element.addEventListener(name, (event) => event.button !== 1 && event.stopPropagation());
  }
  // The middle button moves the canvas, as over the host's own text.
  const pan = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
  for (const [name, method] of Object.entries(pan)) {
    element.addEventListener(name, (event) => {
      if (event.button === 1 || event.buttons & 4) app.canvas?.[method]?.(event);
    });
  }
  for (const name of ["copy", "cut", "paste"]) element.addEventListener(name, (event) => event.stopPropagation());
  element.addEventListener("focusin", ({ target }) => {
    const row = target.closest("[data-phase]");
    const { view, preset } = target.dataset;
    const at = row ? `${row.dataset.phase}.${target.dataset.column}` : view ? `view.${view}` : preset && `preset.${preset}`;
    place = at ? { id: node.id, at } : null;
  });
  return editor;
}

/** The editors of the nodes that are in a graph, with what they were made from. */
const open = new Map();
let timer = null;

function openEditor(node, container) {
  if (open.has(node)) return;
  const locale = localeNow();
  open.set(node, { node, container, locale, editor: addEditor(node, container, locale), missing: 0 });
  timer ??= setInterval(lookAtAll, LOOK);
  if (!current) askMeasured();
  const look = () => open.has(node) && lookAt(open.get(node), isLight());
  requestAnimationFrame(() => requestAnimationFrame(look));
}

function closeEditor(node) {
  open.get(node)?.editor.destroy();
  open.delete(node);
  if (open.size) return;
  clearInterval(timer);
  timer = null;
}

/** Whether a node is in the workflow that is open. Some frontends drop subgraphs without telling the nodes in them. */
function inUse({ graph }) {
  const root = app.rootGraph ?? app.graph;
  return Boolean(graph) && (graph === root || root?.subgraphs?.get?.(graph.id) === graph);
}

/** The text can be changed by the host in ways that tell nobody (undo, other extensions, a linked node), and so can the
 * palette, the language, and the place of a node's elements: so all editors are looked at, by one timer. */
function lookAtAll() {
  if (document.hidden) return;
  const light = isLight();
  const locale = localeNow();
  for (const each of [...open.values()]) {
    const { node, container } = each;
    each.missing = inUse(node) ? 0 : each.missing + 1;
    if (each.missing > 1) closeEditor(node);
    else if (each.locale === locale) lookAt(each, light);
    else {
      closeEditor(node);
      openEditor(node, container);
    }
  }
}

function lookAt({ node, container, editor }, light) {
  if (!container.isConnected) takePlace(node, container);
  if (!container.isConnected) return;
  editor.setTheme(light);
  editor.element.dataset.captureWheel = String(scrolls(editor.element)); // Nodes 2.0 asks for this
  editor.update();
}

/** Call `more` after a node's own method. */
function after(owner, name, more) {
  const before = owner[name];
  owner[name] = function (...values) {
    const result = before?.apply(this, values);
    more();
    return result;
  };
}

app.registerExtension({
  name: "fpsattention.schedule",
  nodeCreated(node) {
    if ((node.comfyClass ?? node.constructor?.comfyClass) !== NODE || !node.addDOMWidget) return;
    const container = addHolder(node);
    const [width, height] = SIZE;
    node.setSize?.([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    // Many nodes are made only to be copied from, so the editor waits until its node is in a graph.
    const show = () => {
      if (node.graph) openEditor(node, container);
      open.get(node)?.editor.update();
    };
    requestAnimationFrame(show);
    after(node, "onAdded", show);
    after(node, "onConfigure", () => {
      show();
      restoreFocus(node);
    });
    for (const name of ["preset", "schedule"]) {
      const followed = widgetOf(node, name);
      if (followed) after(followed, "callback", show);
    }
    after(node, "onRemoved", () => closeEditor(node));
  },
});

api.addEventListener("execution_success", () => {
  current = false;
  if (open.size) askMeasured();
});
