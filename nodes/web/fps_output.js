// Shows the text of FPSAttentionCheck on the node, to read and to copy, and gives nodes with a picture room for it.
// Without this file the text is the node's output all the same.

import { app } from "../../scripts/app.js";
import { html, setText } from "./editor/dom.js";
import { words } from "./editor/strings.js";

const NODE = "FPSAttentionCheck";
const NAME = "fps_check_text";
/** Width and height of a node that a person adds; a saved node keeps its own. */
const SIZES = {
  FPSAttentionCheck: [560, 420],
  FPSAttentionReport: [560, 420],
  FPSAttentionPreview: [560, 560],
  FPSAttentionBenchmark: [560, 560],
  FPSAttentionProfile: [560, 900],
  FPSAttentionLoadHeads: [560, 560],
};
const AROUND = 90;
const COLOR = "color:var(--input-text, inherit)";

async function copy(text, button, say) {
  try {
    await navigator.clipboard.writeText(text);
    setText(button, say("copied"));
  } catch {
    setText(button, say("notCopied")); // a page that is not served from this machine may not write to the clipboard
  }
  setTimeout(() => setText(button, say("copy")), 2000);
}

/** Put the text under the node's sockets; return what fills it. */
function addText(node) {
  const say = words(app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en");
  const text = html("pre", { tabindex: 0, "aria-label": say("checkText"),
    style: "flex:1;overflow:auto;margin:0;white-space:pre-wrap;user-select:text;font:12px/1.45 monospace;" + COLOR },
  say("checkEmpty"));
  const button = html("button", { type: "button", disabled: true, onclick: () => copy(text.textContent, button, say),
    style: "align-self:flex-end;font:12px sans-serif;padding:4px 12px;border:1px solid;border-radius:8px;" +
      "background:transparent;" + COLOR }, say("copy"));
  const box = html("div", { style: "display:flex;flex-direction:column;gap:6px;padding:8px;box-sizing:border-box;" +
    `min-height:max(120px, calc(var(--node-height, 0px) - ${AROUND}px));height:100%` }, text, button);
  // A text is selected and copied here, so the canvas gets neither keys nor pointers of it.
  for (const name of ["pointerdown", "mousedown", "keydown", "copy", "contextmenu", "dblclick"]) {
    box.addEventListener(name, (event) => event.button !== 1 && event.stopPropagation());
  }
  box.addEventListener("wheel", (event) => document.activeElement === text && event.stopPropagation());
  const widget = node.addDOMWidget(NAME, "fps_check_text", box, {
    serialize: false, hideOnZoom: false, getMinHeight: () => 120, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
  return (words) => {
    setText(text, words);
    button.disabled = false;
  };
}

app.registerExtension({
  name: "fpsattention.output",
  nodeCreated(node) {
    const kind = node.comfyClass ?? node.constructor?.comfyClass;
    const size = SIZES[kind];
    if (!size) return;
    if (kind === NODE && node.addDOMWidget) {
      const show = addText(node);
      const executed = node.onExecuted;
      node.onExecuted = function (output) {
        executed?.apply(this, arguments);
        if (Array.isArray(output?.text)) show(output.text.join("\n"));
      };
    }
    node.setSize?.([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
  },
});
