// The plot along the denoising axis: one bar per step, as high as its density, hatched where dense and dashed where it is
// not known before the run; a line for the work done so far; a handle at the end of every phase but the last.

import { progressAt, sigmaAt } from "../core/outlook.js";
import { formatNumber } from "../core/schedule.js";
import { follow, html, percent, svg, uid } from "./dom.js";

const LEFT = 34;
const RIGHT = 12;
const TOP = 22;
const BOTTOM = 20;

/** Make the plot.
 * @param {{dragEnd: (index: number, sigma: number, final: boolean) => void, focus: (index: number) => void}} act
 * @param {(key: string, values?: object) => string} say */
export function stepPlot(act, say) {
  const hatch = `fps-hatch-${uid()}`;
  const image = svg("svg", { class: "fps-plot", role: "img" });
  const element = html("div", { class: "fps-plot-box" }, image);
  let state = null;
  let width = 0;
  let height = 0;
  const observer = new ResizeObserver(() => {
    if (element.clientWidth !== width || element.clientHeight !== height) draw();
  });
  observer.observe(element);

  const x = (progress) => LEFT + progress * (width - LEFT - RIGHT);
  const y = (share) => height - BOTTOM - share * (height - TOP - BOTTOM);

  function update(next) {
    state = next;
    draw();
  }

  function draw() {
    [width, height] = [element.clientWidth, element.clientHeight];
    if (!state?.steps || width < 60 || height < 60) return;
    image.setAttribute("viewBox", `0 0 ${width} ${height}`);
    image.setAttribute("aria-label", say("plotLabel", { parts: summary(state, say) }));
    image.replaceChildren(pattern(), ...bands(), ...axes(), ...bars(), ...questions(), ...line(), ...handles());
  }

  const pattern = () => svg("defs", {}, svg("pattern", { id: hatch, width: 6, height: 6,
    patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
  svg("rect", { width: 6, height: 6, class: "fps-dense-ground" }),
  svg("rect", { width: 1.8, height: 6, class: "fps-dense-stroke" })));

  function axes() {
    const lines = [0, 0.5, 1].flatMap((share) => [
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(share), y2: y(share), class: "fps-grid" }),
      svg("text", { x: LEFT - 6, y: y(share) + 4, "text-anchor": "end" }, `${share * 100}%`),
    ]);
    const ends = state.rows.slice(0, -1).map((row) => [x(progressAt(row.until, state.view.shift)), row.until]);
    let free = LEFT + 22;
    const labels = ends.filter(([at]) => {
      const fits = at - 16 > free && at + 16 < width - RIGHT - 22;
      if (fits) free = at + 16;
      return fits;
    });
    const text = (at, anchor, words) =>
      svg("text", { x: at, y: height - 5, "text-anchor": anchor }, words);
    return [...lines, text(LEFT, "start", say("noise")), text(width - RIGHT, "end", say("video")),
      ...labels.map(([at, until]) => text(at, "middle", formatNumber(until)))];
  }

  /** The phases' numbers over their part of the run. */
  function bands() {
    let from = 0;
    return state.rows.flatMap((row, i) => {
      const to = i === state.rows.length - 1 ? 1 : progressAt(row.until, state.view.shift);
      const [a, b] = [x(from), x(to)];
      from = to;
      if (b - a < 3) return [];
      const focused = i === state.focus;
      return [
        svg("rect", { x: a, y: 2, width: b - a, height: height - BOTTOM - 2, "data-band": i,
          class: focused ? "fps-band fps-on" : "fps-band", onpointerdown: () => act.focus(i) }),
        svg("rect", { x: a + 1, y: 2, width: Math.max(1, b - a - 2), height: 3, rx: 1.5,
          class: focused ? "fps-rule fps-on" : "fps-rule" }),
        b - a >= 12 ? svg("text", { x: (a + b) / 2, y: 16, "text-anchor": "middle",
          class: focused ? "fps-name fps-on" : "fps-name" }, String(i + 1)) : "",
      ];
    });
  }

  /** One bar per step, or per phase where steps are narrower than two pixels. */
  function bars() {
    const wide = (width - LEFT - RIGHT) / state.steps.length;
    const gap = wide > 8 ? 2 : wide > 3 ? 1 : 0;
    const groups = wide < 2 ? runsOf(state.steps) : state.steps.map((step) => [step, step]);
    return groups.map(([step, last]) => {
      const share = step.about ?? 1;
      const what = whatOf(step, state.rows, say);
      const kind = step.density === null ? `${step.attention} fps-unknown` : step.attention;
      const range = (of) => (of(step) === of(last) ? of(step) : `${of(step)}–${of(last)}`);
      return svg("rect", {
        x: x(step.index / state.steps.length) + gap / 2, width: wide * (last.index - step.index + 1) - gap,
        y: y(share), height: y(0) - y(share), rx: wide > 8 ? 2 : 0, "data-step": step.index,
        class: `fps-bar fps-${kind} ${step.phase === state.focus ? "" : "fps-dim"}`,
        fill: kind === "dense" ? `url(#${hatch})` : null,
        onpointerdown: () => act.focus(step.phase),
      }, svg("title", {}, say("stepTip", { step: range((one) => one.index), steps: state.steps.length,
        sigma: range((one) => one.sigma.toFixed(3)), phase: step.phase + 1, what })));
    });
  }

  /** A question mark over the steps of which nothing is known. */
  const questions = () => runsOf(state.steps).filter(([step]) => step.about === null).map(([first, last]) =>
    svg("text", { x: x((first.index + last.index + 1) / 2 / state.steps.length), y: y(0.5) + 4,
      "text-anchor": "middle", class: "fps-question" }, "?"));

  function line() {
    if (state.work === null) return [];
    let sum = 0;
    const n = state.steps.length;
    const points = state.steps.map((step, i) => {
      sum += step.density / n;
      return `${x((i + 1) / n)},${y(sum)}`;
    });
    const path = [`${x(0)},${y(0)}`, ...points].join(" ");
    return [svg("polyline", { points: path, class: "fps-line-under" }),
      svg("polyline", { points: path, class: "fps-line" }),
      svg("circle", { cx: x(1), cy: y(sum), r: 3.5, class: "fps-dot" })];
  }

  function handles() {
    const places = state.rows.slice(0, -1).map((row) => x(progressAt(row.until, state.view.shift)));
    return state.rows.slice(0, -1).map((row, i) => {
      const at = places[i];
      // Where ends crowd, each can still be caught on its own half of the way to the next.
      const [left, right] = [at - (places[i - 1] ?? -Infinity), (places[i + 1] ?? Infinity) - at]
        .map((gap) => Math.max(1, Math.min(9, gap / 2)));
      const knob = Math.min(4, Math.max(1.5, Math.min(left, right)));
      return svg("g", { class: state.readOnly ? "fps-end" : "fps-end fps-movable", "data-end": i,
        onpointerdown: (event) => drag(event, i) },
      svg("line", { x1: at, x2: at, y1: 2, y2: height - BOTTOM }),
      svg("rect", { x: at - knob, y: 0.5, width: 2 * knob, height: 13, rx: Math.min(3, knob), class: "fps-knob" }),
      svg("rect", { x: at - left, y: 0, width: left + right, height: height, class: "fps-catch" },
        svg("title", {}, say("dragEnd", { phase: i + 1, sigma: formatNumber(row.until) }))));
    });
  }

  function drag(event, index) {
    if (state.readOnly || event.button !== 0) return;
    act.focus(index);
    let sigma = null;
    const capture = { currentTarget: element, pointerId: event.pointerId };
    follow(/** @type {any} */ (capture), (moving) => {
      const box = image.getBoundingClientRect();
      const inside = ((moving.clientX - box.left) / box.width) * width;
      const progress = Math.max(0, Math.min(1, (inside - LEFT) / (width - LEFT - RIGHT)));
      sigma = Math.round(sigmaAt(progress, state.view.shift) * 100) / 100;
      act.dragEnd(index, sigma, false);
    }, () => sigma !== null && act.dragEnd(index, sigma, true));
  }

  return { element, update, destroy: () => observer.disconnect() };
}

function whatOf(step, rows, say) {
  if (step.density === null) {
    return step.about === null ? say("unknown") :
      say("unknownAbout", { density: percent(step.about), selector: rows[step.phase].selector });
  }
  return step.attention === "dense" ? say("dense") : say("density", { density: percent(step.density) });
}

/** The first and the last step of every phase that has one. */
function runsOf(steps) {
  const runs = [];
  for (const step of steps) {
    if (runs.at(-1)?.[1].phase === step.phase) runs.at(-1)[1] = step;
    else runs.push([step, step]);
  }
  return runs;
}

/** The plot in words. */
function summary(state, say) {
  return runsOf(state.steps).map(([first, last]) => say(first === last ? "plotPartOne" : "plotPart",
    { first: first.index, last: last.index, what: whatOf(first, state.rows, say) })).join("; ");
}
