// What a workflow says about the video that it makes: size, frames, steps and shift, where it says one thing only.

/** The names that nodes give to a video's number of frames. */
const FRAMES = ["length", "frames", "num_frames"];
/** LiteGraph's modes of nodes that do not run: muted and bypassed. */
const OFF = [2, 4];

/** @typedef {{type?: string, mode?: number, widgets?: {name: string, value: unknown}[]}} Node */

/** The parts of a view that the nodes of a workflow agree on.
 * @param {Node[]} nodes @param {(node: Node, name: string) => boolean} linked whether a widget's value comes from a link
 * @returns {Partial<import("./model.js").View>} */
export function viewFrom(nodes, linked = () => false) {
  /** @type {Record<string, Set<number>>} */
  const seen = {};
  const take = (node, name, widget) => {
    const value = Number(node.widgets?.find((each) => each.name === widget)?.value);
    if (Number.isFinite(value)) (seen[name] ??= new Set()).add(linked(node, widget) ? NaN : value);
  };
  for (const node of nodes) {
    if (OFF.includes(node.mode) || node.type?.startsWith("FPSAttention")) continue;
    const has = (name) => Boolean(node.widgets?.some((each) => each.name === name));
    const frames = FRAMES.find(has);
    if (frames && has("width") && has("height")) {
      take(node, "width", "width");
      take(node, "height", "height");
      take(node, "frames", frames);
    }
    if (has("steps") && has("scheduler")) take(node, "steps", "steps");
    if (node.type === "ModelSamplingSD3") take(node, "shift", "shift");
  }
  const sure = Object.entries(seen).filter(([, values]) => values.size === 1 && !values.has(NaN));
  return Object.fromEntries(sure.map(([name, [value]]) => [name, value]));
}
