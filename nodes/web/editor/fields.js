// The fields of the view: resolution, frames, steps, shift, and the model's size for seconds.

import { html, setText, uid } from "./dom.js";
import { FIELDS, MODELS, fieldValue, modelName } from "./model.js";

/** Make the fields.
 * @param {(change: Partial<import("./model.js").View>) => void} change
 * @param {(key: string, values?: object) => string} say */
export function viewFields(change, say) {
  const id = uid();
  const problem = html("p", { class: "fps-problem-line", id: `fps-view-${id}`, role: "alert", hidden: true });
  const inputs = {};

  function commit(name) {
    const input = inputs[name];
    const value = fieldValue(name, input.value);
    const { least, most, whole } = FIELDS[name];
    problem.hidden = value !== null;
    if (value === null) {
      setText(problem, say(whole ? "whole" : "number", { name: say(name), least, most }));
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", problem.id);
      return;
    }
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
    if (String(value) !== input.dataset.shown) change({ [name]: value });
  }

  function field(name) {
    const input = html("input", { type: "text", class: "fps-field", inputmode: "decimal", autocomplete: "off",
      "data-view": name, maxlength: 8, onchange: () => commit(name),
      onkeydown: (event) => {
        if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) commit(name);
        if (event.key === "Escape") {
          input.value = input.dataset.shown;
          commit(name);
        }
        const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
        if (!by || event.altKey) return;
        event.preventDefault();
        const step = { width: 16, height: 16, frames: 4 }[name] ?? 1;
        const next = fieldValue(name, Number(input.value) + by * step);
        if (next === null) return;
        input.value = String(next);
        commit(name);
      } });
    inputs[name] = input;
    return html("label", { class: `fps-view-field fps-view-${name}` }, html("span", {}, say(name)), input);
  }

  const side = html("select", { class: "fps-field", "data-view": "side", onchange: () => commit("side") },
    html("option", { value: "16" }, "16 px"), html("option", { value: "32" }, "32 px"));
  inputs.side = side;
  const model = html("select", { class: "fps-field", "data-view": "model",
    onchange: () => MODELS[model.value] && change(MODELS[model.value]) },
  ...Object.keys(MODELS).map((name) => html("option", { value: name }, name)),
  html("option", { value: "" }, say("otherModel")));
  const element = html("div", { class: "fps-view", role: "group", "aria-labelledby": `fps-view-name-${id}` },
    html("p", { class: "fps-view-name", id: `fps-view-name-${id}` }, html("b", {}, say("view")), ` ${say("viewTip")}`),
    html("div", { class: "fps-view-row" },
      ...["width", "height", "frames", "steps", "shift"].map(field)),
    html("div", { class: "fps-view-row" },
      html("label", { class: "fps-view-field fps-view-model" }, html("span", {}, say("model")), model),
      html("label", { class: "fps-view-field" }, html("span", {}, say("side")), side),
      ...["heads", "layers"].map(field)),
    problem);

  function update(view) {
    for (const [name, input] of Object.entries(inputs)) {
      const text = String(view[name]);
      if (input.dataset.shown === text && input.getAttribute("aria-invalid")) continue;
      const draft = input === document.activeElement && input.value !== input.dataset.shown;
      if (!draft) input.value = text;
      input.dataset.shown = text;
    }
    model.value = modelName(view) ?? "";
  }
  return { element, update };
}
