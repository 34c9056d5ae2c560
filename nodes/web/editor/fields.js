// The fields of the view: resolution, frames, steps, shift, and the model's size for seconds.

import { html, setText, takes, uid } from "./dom.js";
import { FIELDS, MODELS, fieldValue, modelName, nextValue } from "./model.js";

/** Make the fields; `take` fills them from the workflow.
 * @param {(change: Partial<import("./model.js").View>) => void} change @param {() => void} take
 * @param {(key: string, values?: object) => string} say */
export function viewFields(change, take, say) {
  const id = uid();
  const problems = html("div", { role: "alert" });
  const inputs = {};

  /** Say under the fields what is wrong with one of them, each on its own line, until it is right. */
  function report(name, sentence) {
    const input = inputs[name];
    const line = `fps-view-${id}-${name}`;
    const found = [...problems.children].find((each) => each.id === line);
    if (sentence === null) {
      found?.remove();
      input.removeAttribute("aria-invalid");
      input.removeAttribute("aria-describedby");
      return;
    }
    if (found) setText(found, sentence);
    else problems.append(html("p", { class: "fps-problem-line", id: line }, sentence));
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", line);
  }

  function commit(name) {
    const input = inputs[name];
    const value = fieldValue(name, input.value);
    const { least, most, whole } = FIELDS[name];
    if (value === null) {
      return report(name, say(whole ? "whole" : "number", { name: say(name), text: input.value.trim(), least, most }));
    }
    report(name, null);
    input.value = String(value);
    if (input.value !== input.dataset.shown) change({ [name]: value });
  }

  function field(name) {
    const input = html("input", { type: "text", class: "fps-field", inputmode: "decimal", autocomplete: "off",
      "data-view": name, maxlength: 20, onchange: () => commit(name),
      onkeydown: (event) => {
        if (takes(event)) commit(name);
        if (event.key === "Escape") {
          input.value = input.dataset.shown;
          commit(name);
        }
        const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
        if (!by || event.altKey) return;
        event.preventDefault();
        const next = nextValue(name, input.value, by);
        if (next === null) return;
        input.value = String(next);
        commit(name);
      } });
    inputs[name] = input;
    return html("label", { class: `fps-view-field fps-view-${name}` }, html("span", {}, say(name)), input);
  }

  const tip = html("span", {}, say("viewTip"));
  let back = 0;

  /** Say something for a while where the tip stands. */
  function tell(words) {
    setText(tip, words);
    clearTimeout(back);
    back = setTimeout(() => setText(tip, say("viewTip")), 6000);
  }

  const side = html("select", { class: "fps-field", "data-view": "side", onchange: () => commit("side") },
    html("option", { value: "16" }, "16 px"), html("option", { value: "32" }, "32 px"));
  inputs.side = side;
  const model = html("select", { class: "fps-field", "data-view": "model",
    onchange: () => MODELS[model.value] && change(MODELS[model.value]) },
  ...Object.keys(MODELS).map((name) => html("option", { value: name }, name)),
  html("option", { value: "" }, say("otherModel")));
  const element = html("div", { class: "fps-view", role: "group", "aria-labelledby": `fps-view-name-${id}` },
    html("div", { class: "fps-view-head" },
      html("p", { class: "fps-view-name", id: `fps-view-name-${id}` }, html("b", {}, say("view")), " ", tip),
      html("button", { type: "button", class: "fps-take", title: say("takeTip"), onclick: take }, say("take"))),
    html("div", { class: "fps-view-row" },
      ...["width", "height", "frames", "steps", "shift"].map(field)),
    html("div", { class: "fps-view-row" },
      html("label", { class: "fps-view-field fps-view-model" }, html("span", {}, say("model")), model),
      html("label", { class: "fps-view-field" }, html("span", {}, say("side")), side),
      ...["heads", "layers"].map(field)),
    problems);

  function update(view) {
    for (const [name, input] of Object.entries(inputs)) {
      const text = String(view[name]);
      if (input.dataset.shown === text && input.hasAttribute("aria-invalid")) continue;
      if (input.hasAttribute("aria-invalid")) report(name, null); // a value has come from elsewhere
      const draft = input === document.activeElement && input.value !== input.dataset.shown;
      if (!draft) input.value = text;
      input.dataset.shown = text;
    }
    model.value = modelName(view) ?? "";
  }
  return { element, update, tell };
}
