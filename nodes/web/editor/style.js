// The editor's look. Colors are its own in both themes, so that contrast does not depend on a node's color.

const CSS = `
.fps-editor {
  --fps-ground: #16181c; --fps-panel: #1e2127; --fps-line: #343942; --fps-edge: #6b7482;
  --fps-text: #eceef2; --fps-soft: #a9b1be; --fps-field: #121418; --fps-on: #262b34;
  --fps-fp8: #6ea8ff; --fps-bf16: #4fd1b3; --fps-dense: #8d96a5; --fps-dense-ground: #2b3038;
  --fps-work: #ffb454; --fps-bad: #ff9a9a; --fps-bad-ground: #3a1f22; --fps-focus: #8fc0ff; --fps-note: #26303f;
  box-sizing: border-box; position: absolute; inset: 0; overflow: auto; overscroll-behavior: contain;
  container-type: inline-size; border-radius: 8px; border: 1px solid var(--fps-line);
  background: var(--fps-ground); color: var(--fps-text); color-scheme: dark;
  font: 12px/1.4 Inter, "Segoe UI", system-ui, "Noto Sans SC", "PingFang SC", sans-serif;
  font-variant-numeric: tabular-nums; text-align: left; scrollbar-width: thin; user-select: none;
}
.fps-editor.fps-light {
  --fps-ground: #ffffff; --fps-panel: #f4f6f9; --fps-line: #d5dbe4; --fps-edge: #7a8597;
  --fps-text: #1a1f29; --fps-soft: #545e6e; --fps-field: #ffffff; --fps-on: #e9eef6;
  --fps-fp8: #2f6fdb; --fps-bf16: #0c7d66; --fps-dense: #7d8798; --fps-dense-ground: #e6eaf0;
  --fps-work: #b45309; --fps-bad: #b3261e; --fps-bad-ground: #fdecea; --fps-focus: #1d5fd0; --fps-note: #e6eefb;
  color-scheme: light;
}
.fps-editor *, .fps-editor *::before { box-sizing: border-box; }
.fps-editor [hidden] { display: none !important; }
.fps-body { display: flex; flex-direction: column; gap: 10px; padding: 10px; min-width: 0; min-height: 100%; }
.fps-editor :focus-visible { outline: 2px solid var(--fps-focus); outline-offset: 1px; }
.fps-unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.fps-editor p { margin: 0; }

.fps-presets { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; }
.fps-presets > span { color: var(--fps-soft); margin-right: 2px; }
.fps-chip, .fps-add, .fps-take { font: inherit; color: var(--fps-text); background: var(--fps-panel); cursor: pointer;
  border: 1px solid var(--fps-line); border-radius: 999px; padding: 3px 11px; line-height: 1.4; }
.fps-chip:hover:not(:disabled), .fps-take:hover, .fps-add:hover:not([aria-disabled="true"]) { border-color: var(--fps-edge);
  background: var(--fps-on); }
.fps-chip[aria-pressed="true"] { border-color: var(--fps-fp8); box-shadow: inset 0 0 0 1px var(--fps-fp8);
  font-weight: 600; }
.fps-chip:disabled { cursor: default; color: var(--fps-soft); }

.fps-note { background: var(--fps-note); border-radius: 6px; padding: 6px 10px; line-height: 1.45; }
.fps-error { background: var(--fps-bad-ground); color: var(--fps-bad); border-radius: 6px; padding: 8px 10px;
  user-select: text; overflow-wrap: anywhere; }
.fps-error strong { display: block; color: var(--fps-text); font-weight: 600; }
.fps-error span { display: block; color: var(--fps-text); margin-top: 4px; }

.fps-summary { display: flex; align-items: baseline; flex-wrap: wrap; gap: 2px 8px; }
.fps-work { font-size: 20px; line-height: 1.15; font-weight: 650; letter-spacing: -.01em; }
.fps-summary .fps-soft { color: var(--fps-soft); }
.fps-summary .fps-right { margin-left: auto; text-align: right; }
.fps-seconds { flex-basis: 100%; color: var(--fps-soft); }
.fps-seconds b { color: var(--fps-text); font-weight: 600; }

.fps-panels { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 190px); gap: 8px;
  flex: 1 0 auto; }
.fps-panel { background: var(--fps-panel); border-radius: 8px; padding: 8px 8px 6px; min-width: 0; display: flex;
  flex-direction: column; }
.fps-panel > h4 { margin: 0 2px 4px; font: inherit; font-weight: 600; display: flex; align-items: center;
  gap: 4px 10px; flex-wrap: wrap; }
.fps-legend { display: inline-flex; flex-wrap: wrap; gap: 2px 10px; font-weight: 400; color: var(--fps-soft);
  margin-left: auto; font-size: 11px; }
.fps-legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 4px;
  vertical-align: -1px; background: currentColor; }
.fps-legend .fps-key-fp8 { color: var(--fps-fp8); } .fps-legend .fps-key-bf16 { color: var(--fps-bf16); }
.fps-legend .fps-key-dense { background: repeating-linear-gradient(135deg, var(--fps-dense) 0 2px,
  var(--fps-dense-ground) 2px 5px); }
.fps-legend .fps-key-unknown { background: none; border: 1px dashed var(--fps-edge); }
.fps-legend .fps-key-work { height: 3px; color: var(--fps-work); vertical-align: 3px; width: 14px; }
@container (max-width: 450px) { .fps-panels { grid-template-columns: minmax(0, 1fr); } }

.fps-plot-box, .fps-tiles-box { position: relative; width: 100%; min-width: 0; flex: 1 0 150px; overflow: hidden; }
.fps-plot, .fps-tiles { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; }
.fps-plot text { pointer-events: none; fill: var(--fps-soft); font: 11px Inter, "Segoe UI", system-ui, sans-serif; }
.fps-plot .fps-name.fps-on { fill: var(--fps-text); font-weight: 700; }
.fps-grid { stroke: var(--fps-line); pointer-events: none; }
.fps-band { fill: transparent; cursor: pointer; } .fps-band.fps-on { fill: var(--fps-on); }
.fps-rule { fill: var(--fps-line); } .fps-rule.fps-on { fill: var(--fps-edge); }
.fps-bar { cursor: pointer; }
.fps-bar.fps-fp8 { fill: var(--fps-fp8); } .fps-bar.fps-bf16 { fill: var(--fps-bf16); }
.fps-bar.fps-unknown { fill-opacity: .22; stroke: var(--fps-fp8); stroke-dasharray: 3 2; }
.fps-bar.fps-unknown.fps-bf16 { stroke: var(--fps-bf16); }
.fps-bar.fps-dim { opacity: .62; }
.fps-dense-ground { fill: var(--fps-dense-ground); } .fps-dense-stroke { fill: var(--fps-dense); }
.fps-line, .fps-line-under { fill: none; stroke: var(--fps-work); stroke-width: 2; pointer-events: none;
  stroke-linejoin: round; }
.fps-line-under { stroke: var(--fps-panel); stroke-width: 4; opacity: .55; }
.fps-plot .fps-question { fill: var(--fps-text); font-weight: 600; }
.fps-dot { fill: var(--fps-work); stroke: var(--fps-panel); stroke-width: 1.5; pointer-events: none; }
.fps-end line { stroke: var(--fps-edge); stroke-dasharray: 2 3; pointer-events: none; }
.fps-knob { fill: var(--fps-edge); stroke: var(--fps-panel); stroke-width: 1.5; pointer-events: none; }
.fps-catch { fill: transparent; }
.fps-movable .fps-catch { cursor: ew-resize; } .fps-movable:hover .fps-knob { fill: var(--fps-text); }

.fps-tiles-panel { display: flex; flex-direction: column; flex: 1; }
.fps-tiles-box { flex-basis: 112px; border-radius: 4px; cursor: crosshair; touch-action: none; }
.fps-unlit { fill: var(--fps-field); stroke: var(--fps-line); }
.fps-lit { fill: var(--fps-fp8); opacity: .55; }
.fps-panel[data-attention="bf16"] .fps-lit { fill: var(--fps-bf16); }
.fps-panel[data-attention="dense"] .fps-lit { fill: var(--fps-dense); }
.fps-mesh { stroke: var(--fps-line); fill: none; }
.fps-edge { fill: none; stroke: var(--fps-text); stroke-opacity: .75; }
.fps-query { fill: var(--fps-text); stroke: var(--fps-ground); }
.fps-query-dot { fill: var(--fps-ground); }
.fps-caption { color: var(--fps-soft); font-size: 11px; line-height: 1.35; margin-top: 4px; }
.fps-caption.fps-told { display: grid; gap: 6px; font-size: 12px; margin: 4px 2px; }
.fps-told > :first-child { color: var(--fps-text); }

.fps-scroll { position: relative; flex: none; }
.fps-table { width: 100%; border-collapse: collapse; table-layout: fixed; font: inherit; color: inherit; }
.fps-table th, .fps-table td { padding: 2px; text-align: left; font-weight: 400; vertical-align: middle; border: 0; }
.fps-table thead th { color: var(--fps-soft); font-size: 11px; padding: 0 2px 2px 7px; white-space: nowrap; }
.fps-table thead th.fps-right { padding-right: 6px; }
.fps-table .fps-number { width: 42px; padding-left: 0; }
.fps-table th:nth-child(3) { width: 13%; } .fps-table th:nth-child(4) { width: 12.8%; }
.fps-table th:nth-child(5) { width: 15%; }
.fps-table thead :is(th:nth-child(3), th:nth-child(4), th:nth-child(5)) { padding-left: 6px; }
.fps-table thead th.fps-right { width: 54px; }
.fps-table input.fps-field { padding: 0 5px; }
.fps-table th:last-child { width: 26px; }
.fps-table .fps-right { text-align: right; }
.fps-table .fps-share { color: var(--fps-soft); padding-right: 6px; white-space: nowrap; }
.fps-table tbody tr.fps-focused > * { background: var(--fps-on); }
.fps-table tbody tr.fps-focused > :first-child { border-radius: 6px 0 0 6px; }
.fps-table tbody tr.fps-focused > :last-child { border-radius: 0 6px 6px 0; }
.fps-table tr[data-dragged] > * { box-shadow: inset 0 1px var(--fps-focus), inset 0 -1px var(--fps-focus); }
.fps-table td:has(> [hidden])::before { content: "–"; color: var(--fps-soft); padding-left: 9px; }
.fps-field { font: inherit; color: var(--fps-text); background-color: var(--fps-field); width: 100%; min-width: 0;
  height: 26px; border: 1px solid var(--fps-edge); border-radius: 5px; padding: 0 7px; margin: 0; user-select: text;
  box-shadow: none; }
.fps-field::placeholder { color: var(--fps-soft); opacity: 1; font-style: italic; }
.fps-numbers { display: flex; gap: 4px; }
select.fps-field { padding: 0 2px 0 4px; cursor: pointer; }
.fps-field:hover:not(:disabled):not([readonly]) { border-color: var(--fps-soft); }
.fps-field[readonly], .fps-field:disabled { border-color: transparent; background: transparent; cursor: default;
  color: var(--fps-soft); opacity: 1; }
.fps-field[aria-invalid="true"] { border-color: var(--fps-bad); box-shadow: 0 0 0 1px var(--fps-bad); }
.fps-problem td, .fps-problem-line { color: var(--fps-bad); font-size: 11.5px; overflow-wrap: anywhere; }
.fps-problem td { padding: 0 6px 4px 46px; }
.fps-grip, .fps-remove { font: inherit; color: var(--fps-text); width: 24px; height: 24px; padding: 0; display: grid;
  place-items: center; border-radius: 5px; border: 0; background: transparent; cursor: pointer; }
.fps-grip { cursor: grab; touch-action: none; width: 36px; grid-template-columns: 12px 22px; gap: 2px; }
.fps-grip i { width: 8px; height: 12px; color: var(--fps-edge);
  background: radial-gradient(circle, currentColor 1px, transparent 1.3px) 0 0 / 4px 4px; }
.fps-grip:hover i { color: var(--fps-text); }
.fps-grip b { width: 20px; height: 20px; border-radius: 6px; display: grid; place-items: center; font-size: 11px;
  font-weight: 700; background: var(--fps-fp8); color: var(--fps-ground); }
tr[data-attention="bf16"] .fps-grip b { background: var(--fps-bf16); }
tr[data-attention="dense"] .fps-grip b { background: var(--fps-dense-ground); color: var(--fps-text);
  box-shadow: inset 0 0 0 1.5px var(--fps-dense); }
.fps-grip[aria-disabled="true"] i { visibility: hidden; }
.fps-grip[aria-disabled="true"] { cursor: default; }
.fps-remove { color: var(--fps-soft); font-size: 16px; line-height: 1; }
.fps-remove:hover:not(:disabled) { color: var(--fps-bad); background: var(--fps-bad-ground); }
.fps-remove:disabled { visibility: hidden; }
.fps-under { display: flex; align-items: center; gap: 4px 12px; flex-wrap: wrap; margin-top: 4px; }
.fps-under .fps-hint { color: var(--fps-soft); font-size: 11px; margin-left: auto; }
.fps-add { border-radius: 6px; padding: 3px 10px; }
.fps-add[aria-disabled="true"] { color: var(--fps-soft); cursor: default; }

.fps-view-head { display: flex; align-items: center; justify-content: space-between; gap: 8px; }
.fps-view-name { color: var(--fps-soft); font-size: 11px; }
.fps-view-name b { color: var(--fps-text); font-size: 12px; font-weight: 600; margin-right: 4px; }
.fps-view { border-top: 1px solid var(--fps-line); padding-top: 8px; display: grid; gap: 6px; }
.fps-view-row { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 6px; }
.fps-view-field { display: grid; gap: 1px; color: var(--fps-soft); font-size: 11px; min-width: 0; }
.fps-view-field > span { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.fps-view-field .fps-field { font-size: 12px; height: 24px; }
.fps-view-model { grid-column: span 2; }
@container (max-width: 520px) { .fps-scroll { overflow-x: auto; } .fps-table { min-width: 500px; } }
@container (max-width: 450px) { .fps-hint { display: none; } }
@container (max-width: 330px) {
  .fps-view-row { grid-template-columns: repeat(4, minmax(0, 1fr)); }
}
`;

/** Put the style into the page once. */
export function addStyle() {
  if (document.getElementById("fps-editor-style")) return;
  const element = document.createElement("style");
  element.id = "fps-editor-style";
  element.textContent = CSS;
  document.head.append(element);
}
