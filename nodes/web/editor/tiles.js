// The tile grid of the phase in focus: the frame's tiles at the query's time, and a strip of time beside it. For a
// selector's word there is no such picture, but what the word does.

import { ONLINE } from "../core/known.js";
import { aboutDensity } from "../core/outlook.js";
import { bandStart, windowTiles } from "../core/patterns.js";
import { isFull } from "../core/schedule.js";
import { follow, html, percent, setText, svg } from "./dom.js";
import { numbersOf } from "./strings.js";

const STRIP = 14;

/** Make the picture of tiles.
 * @param {(key: string, values?: object) => string} say */
export function tilePicture(say) {
  const image = svg("svg", { class: "fps-tiles", "aria-hidden": "true" });
  const caption = html("div", { class: "fps-caption", "aria-live": "polite" });
  const box = html("div", { class: "fps-tiles-box", role: "application", tabindex: 0, onkeydown: press,
    onpointerdown: point }, image);
  const element = html("div", { class: "fps-tiles-panel" }, box, caption);
  /** Query tile as shares of the axes, so that it stays where it is when the grid changes. */
  let place = [0.5, 0.5, 0.5];
  let state = null;
  let shape = null;
  const observer = new ResizeObserver(draw);
  observer.observe(box);

  const pieces = () => state.tiling.pieces;
  const query = () => pieces().map((n, axis) => Math.min(n - 1, Math.floor(place[axis] * n)));

  function setQuery(tile) {
    place = tile.map((i, axis) => (Math.max(0, Math.min(pieces()[axis] - 1, i)) + 0.5) / pieces()[axis]);
    draw();
  }

  function press(event) {
    const steps = { ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1],
      PageUp: [-1, 0, 0], PageDown: [1, 0, 0] };
    const by = steps[event.key];
    if (!by || !state?.tiling || event.altKey) return;
    event.preventDefault();
    setQuery(query().map((i, axis) => i + by[axis]));
  }

  function point(event) {
    if (event.button !== 0 || !shape) return;
    const inTime = locate(event).y > shape.bottom;
    const go = (moving) => {
      const { x, y } = locate(moving);
      const [t, h, w] = query();
      if (inTime) setQuery([Math.floor((x - shape.left) / shape.stepT), h, w]);
      else setQuery([t, Math.floor((y - shape.top) / shape.stepH), Math.floor((x - shape.left) / shape.stepW)]);
    };
    go(event);
    follow(event, go, () => {});
  }

  /** A pointer's place in the drawing, whatever the zoom. */
  function locate(event) {
    const { left, top, width, height } = image.getBoundingClientRect();
    return { x: ((event.clientX - left) / width) * shape.width, y: ((event.clientY - top) / height) * shape.height };
  }

  function update(next) {
    state = next;
    box.setAttribute("aria-label", say("tilesLabel", { phase: state.focus + 1 }));
    draw();
  }

  function draw() {
    if (!state?.tiling) return;
    const row = state.rows[state.focus];
    box.hidden = row.selector !== null;
    caption.classList.toggle("fps-told", box.hidden);
    if (box.hidden) return tell(row);
    const { clientWidth: width, clientHeight: height } = box;
    if (width < 40 || height < 40) return;
    const [nt, nh, nw] = pieces();
    const side = Math.min((width - 2) / nw / state.tiling.tile[2], (height - STRIP - 12) / nh / state.tiling.tile[1]);
    const [stepW, stepH] = [side * state.tiling.tile[2], side * state.tiling.tile[1]];
    const frameWidth = stepW * nw;
    const top = Math.max(1, (height - stepH * nh - STRIP - 10) / 2);
    shape = { width, height, left: (width - frameWidth) / 2, top, bottom: top + stepH * nh + 5, stepW, stepH,
      stepT: frameWidth / nt };
    image.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const k = isFull(row) ? pieces() : windowTiles(row.window, state.tiling);
    image.replaceChildren(...frame(k), ...strip(k));
    setText(caption, captionOf(row, k));
  }

  function frame(k) {
    const [, nh, nw] = pieces();
    const [, qh, qw] = query();
    const { left, top, stepW, stepH } = shape;
    return grid(left, top, nw, nh, stepW, stepH, [bandStart(qw, nw, k[2]), k[2], bandStart(qh, nh, k[1]), k[1]],
      [qw, qh]);
  }

  function strip(k) {
    const nt = pieces()[0];
    const qt = query()[0];
    return grid(shape.left, shape.bottom + 4, nt, 1, shape.stepT, STRIP, [bandStart(qt, nt, k[0]), k[0], 0, 1], [qt, 0]);
  }

  function captionOf(row, k) {
    if (row.attention === "dense") return say("tilesDense");
    if (isFull(row)) return say("tilesFull");
    const all = pieces().reduce((a, b) => a * b, 1);
    const seen = k.reduce((a, b) => a * b, 1);
    const at = query().map((i) => i + 1).join(", ");
    return `${say("tilesCaption", { seen, all, k: k.join("×"), n: pieces().join("×") })} (${percent(seen / all)}). ` +
      say("tilesAt", { at });
  }

  /** What a selector's word does, who decides, and what its numbers are. */
  function tell(row) {
    const [word, ...numbers] = row.selector.split(" ");
    const about = aboutDensity(row);
    const online = about === null ? "tilesOnline" : numbers.length > 1 ? "tilesGate" : "tilesAbout";
    const decided = ONLINE.includes(word) ? say(online, { share: percent(about ?? 0) }) : say("tilesHeads");
    const lines = [say("wordDoes", { word, says: say(`word_${word}`) }), decided, ...numbersOf(word, say)];
    if (caption.textContent !== lines.join("")) caption.replaceChildren(...lines.map((line) => html("p", {}, line)));
  }

  return { element, update, destroy: () => observer.disconnect() };
}

/** Cells in columns and rows: the seen ones filled, the query's with a frame and a dot. */
function grid(left, top, columns, rows, wide, high, seen, [column, row]) {
  const right = left + columns * wide;
  const bottom = top + rows * high;
  const lines = [];
  if (Math.min(wide, rows > 1 ? high : wide) >= 3) {
    for (let i = 1; i < columns; i++) lines.push(`M${left + i * wide} ${top}V${bottom}`);
    for (let i = 1; i < rows; i++) lines.push(`M${left} ${top + i * high}H${right}`);
  }
  return [
    svg("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "fps-unlit" }),
    svg("rect", { x: left + seen[0] * wide, y: top + seen[2] * high, width: seen[1] * wide,
      height: seen[3] * high, class: "fps-lit" }),
    svg("path", { d: lines.join(""), class: "fps-mesh" }),
    svg("rect", { x: left + seen[0] * wide, y: top + seen[2] * high, width: seen[1] * wide,
      height: seen[3] * high, class: "fps-edge" }),
    svg("rect", { x: left + column * wide, y: top + row * high, width: wide, height: high, class: "fps-query" }),
    svg("circle", { cx: left + (column + 0.5) * wide, cy: top + (row + 0.5) * high,
      r: Math.max(1, Math.min(2.5, wide / 4, high / 4)), class: "fps-query-dot" }),
  ];
}
