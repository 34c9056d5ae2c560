// The table of phases. Its rows are made once and then only filled, so that the focus stays where it is.

import { ARGUMENTS, ATTENTIONS, GRANULARITIES, SELECTORS } from "../core/known.js";
import { aboutDensity } from "../core/outlook.js";
import { formatNumber } from "../core/schedule.js";
import { follow, html, percent, setText, takes, uid } from "./dom.js";
import { numbersOf } from "./strings.js";

const AXES = ["t", "h", "w"];
const WINDOW = "window";
/** The columns of a selector's numbers. */
const NUMBERS = Array.from({ length: Math.max(...Object.values(ARGUMENTS).map((each) => each.length)) },
  (_, i) => `number${i + 1}`);
const COLUMNS = 10;

/** What the table asks its owner to do.
 * @typedef {{change: (index: number, column: string, value: string | number) => string | null,
 *   move: (from: number, to: number, final: boolean) => void, remove: (index: number) => void,
 *   focus: (index: number) => void}} TableActions */

/** Make the table.
 * @param {TableActions} act `change` returns the sentence that says why a value cannot be used, or null
 * @param {(key: string, values?: object) => string} say */
export function phaseTable(act, say) {
  const id = uid();
  const body = html("tbody");
  const head = html("tr", {},
    html("th", { scope: "col", class: "fps-number" }, html("span", { class: "fps-unseen" }, say("phase"))),
    ...["until", "attention", "granularity", "pattern"].map((key) => html("th", { scope: "col" }, say(key))),
    ...AXES.map((axis) => html("th", { scope: "col", title: say(axis) }, axis)),
    html("th", { scope: "col", class: "fps-right" }, say("share")),
    html("th", { scope: "col" }, html("span", { class: "fps-unseen" }, say("remove"))));
  const element = html("table", { class: "fps-table" },
    html("caption", { class: "fps-unseen" }, say("phases")), html("thead", {}, head), body);
  /** @type {ReturnType<typeof phaseRow>[]} */
  const rows = [];

  function update(state) {
    while (rows.length < state.rows.length) {
      const row = phaseRow(rows.length, `${id}-${rows.length}`, act, say, () => rows.map((each) => each.element));
      rows.push(row);
      body.append(row.element, row.problem);
    }
    while (rows.length > state.rows.length) {
      const row = rows.pop();
      row.element.remove();
      row.problem.remove();
    }
    rows.forEach((row, i) => row.update(state, i));
  }

  /** Put the focus on a column of a row, as far as both exist. */
  const focus = (index, column) => rows[Math.min(index, rows.length - 1)]?.focus(column);
  return { element, update, focus };
}

function phaseRow(index, id, act, say, elements) {
  const phase = index + 1;
  const fields = {};
  const sentences = html("td", { colspan: COLUMNS });
  const problem = html("tr", { class: "fps-problem", hidden: true }, sentences);
  let committing = false;

  /** Say under the row what is wrong with one of its fields, each on its own line, until it is right. */
  function report(column, sentence) {
    const field = fields[column];
    const line = `fps-problem-${id}-${column}`;
    const found = [...sentences.children].find((each) => each.id === line);
    if (sentence === null) {
      found?.remove();
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    } else {
      if (found) setText(found, sentence);
      else sentences.append(html("div", { id: line }, sentence));
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-describedby", line);
    }
    problem.hidden = !sentences.childElementCount;
  }

  /** Hand a field's value over; a value that cannot be used stays in its field, marked, and changes nothing else. */
  function commit(column, value = fields[column].value) {
    const field = fields[column];
    if (value === field.dataset.shown) {
      field.value = value;
      return report(column, null);
    }
    committing = true;
    const sentence = act.change(index, column, value);
    committing = false;
    report(column, sentence);
  }

  /** Hand over what was typed into a field, if it is one; false if it cannot be used. */
  function settled(column) {
    const field = fields[column];
    if (!field || field.value === field.dataset.shown) return true;
    commit(column);
    return !field.hasAttribute("aria-invalid");
  }

  function text(column, label) {
    const field = html("input", {
      type: "text", class: "fps-field", "aria-label": label, "data-column": column, autocomplete: "off",
      spellcheck: "false", inputmode: column === "until" ? "decimal" : "text", maxlength: 40,
      onchange: () => commit(column),
      // An arrow key that went too far has said so; the field itself is right.
      onblur: () => field.value === field.dataset.shown && report(column, null),
      onkeydown: (event) => {
        if (takes(event)) commit(column);
        else if (event.key === "Escape") {
          field.value = field.dataset.shown;
          report(column, null);
        } else if (!event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
          event.preventDefault();
          const number = ARGUMENTS[fields.pattern.value]?.[NUMBERS.indexOf(column)];
          const next = stepped(column, field.value, event.key === "ArrowUp" ? 1 : -1, event.shiftKey, number);
          if (next !== null && !field.readOnly) commit(column, next);
        }
      },
    });
    fields[column] = field;
    return field;
  }

  function choice(column, label, options) {
    const field = html("select", { class: "fps-field", "aria-label": label, "data-column": column,
      onchange: () => commit(column) },
    ...options.map((option) => html("option", { value: option.value ?? option, title: option.title },
      option.name ?? option)));
    fields[column] = field;
    return field;
  }

  const grip = html("button", { type: "button", class: "fps-grip", "aria-label": say("moveLabel", { phase }),
    title: say("moveLabel", { phase }), "data-column": "grip",
    onpointerdown: (event) => dragRow(event),
    onkeydown: (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!by || event.altKey) return;
      event.preventDefault();
      act.move(index, index + by, true);
    } }, html("i", { "aria-hidden": "true" }), html("b", {}, String(phase)));

  function dragRow(event) {
    if (event.button !== 0 || grip.getAttribute("aria-disabled") === "true") return;
    let at = index;
    let went = false;
    const mark = () => elements().forEach((row, i) => row.toggleAttribute("data-dragged", i === at));
    mark();
    follow(event, (moving) => {
      const to = elements().findIndex((row) => {
        const box = row.getBoundingClientRect();
        return moving.clientY >= box.top && moving.clientY < box.bottom;
      });
      if (to < 0 || to === at) return;
      act.move(at, to, false);
      at = to;
      went = true;
      mark();
    }, () => {
      if (went) act.move(at, at, true);
      at = -1;
      mark();
    });
  }

  const remove = html("button", { type: "button", class: "fps-remove", "aria-label": say("removeLabel", { phase }),
    title: say("removeLabel", { phase }), "data-column": "remove", onclick: () => act.remove(index) }, "×");
  const share = html("td", { class: "fps-share fps-right" });
  const cell = (...children) => html("td", {}, ...children);
  const cells = {
    until: cell(text("until", say("untilLabel", { phase }))),
    attention: cell(choice("attention", say("attentionLabel", { phase }), ATTENTIONS)),
    granularity: cell(choice("granularity", say("granularityLabel", { phase }), GRANULARITIES)),
    pattern: cell(choice("pattern", say("patternLabel", { phase }), [{ value: WINDOW, name: say("window") },
      ...SELECTORS.map((word) => ({ value: word, name: word, title: say(`word_${word}`) }))])),
  };
  const extents = AXES.map((axis) => cell(text(axis, say("extentLabel", { phase, axis: say(axis) }))));
  const numbers = html("div", { class: "fps-numbers" }, ...NUMBERS.map((column) => text(column, "")));
  const numbersCell = cell(numbers);
  numbersCell.setAttribute("colspan", String(AXES.length));
  const element = html("tr", {
    "data-phase": index,
    onfocusin: () => act.focus(index),
    onpointerdown: () => act.focus(index),
    onkeydown: (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!by || !event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      if (settled(event.target.dataset.column)) act.move(index, index + by, true);
    },
  }, html("th", { scope: "row", class: "fps-number" }, grip), ...Object.values(cells), ...extents, numbersCell,
  share, cell(remove));

  /** Show a value, except over what somebody is writing. */
  function show(column, value, off = false) {
    const field = fields[column];
    const writing = field === document.activeElement || field.hasAttribute("aria-invalid");
    const draft = writing && field.value !== field.dataset.shown;
    if (!draft || field.dataset.shown !== value) field.value = value;
    if (off || field.dataset.shown !== value) report(column, null);
    field.dataset.shown = value;
    field.hidden = off;
  }

  function update(state, i) {
    const row = state.rows[i];
    const last = i === state.rows.length - 1;
    const dense = row.attention === "dense";
    const before = element.dataset.key;
    element.dataset.key = JSON.stringify(row);
    // Another row may have come to this place; what is wrong here stays if the row was changed in its other fields.
    if (before !== element.dataset.key && !committing) for (const column of Object.keys(fields)) report(column, null);
    element.classList.toggle("fps-focused", state.focus === i);
    element.dataset.attention = row.attention;
    show("until", formatNumber(row.until));
    const label = say(last ? "untilFixed" : "untilLabel", { phase });
    fields.until.setAttribute("aria-label", label);
    fields.until.title = last ? label : "";
    show("attention", row.attention);
    show("granularity", row.granularity ?? "x1", row.granularity === null);
    AXES.forEach((axis, a) => {
      const extent = row.window?.[a];
      show(axis, extent === null || extent === undefined ? "all" : String(extent), row.window === null);
      extents[a].hidden = row.selector !== null;
    });
    showSelector(row.selector?.split(" ") ?? [WINDOW], dense);
    const density = state.densities?.[i];
    const about = density === null ? aboutDensity(row) : null;
    const open = about === null ? "?" : `≈ ${percent(about)}`;
    setText(share, density === undefined ? "" : density === null ? open : percent(density));
    share.title = density === null ? say("unknown") : "";
    for (const field of Object.values(fields)) field.disabled = state.readOnly;
    fields.until.readOnly = last;
    remove.disabled = state.readOnly || state.rows.length < 2;
    grip.setAttribute("aria-disabled", String(state.readOnly || state.rows.length < 2));
  }

  function showSelector([word, ...given], dense) {
    const wanted = ARGUMENTS[word] ?? [];
    // What was being written belongs to the former word.
    if (fields.pattern.dataset.shown !== word) for (const column of NUMBERS) delete fields[column].dataset.shown;
    show("pattern", word, dense);
    fields.pattern.title = word === WINDOW ? "" : say("wordDoes", { word, says: say(`word_${word}`) });
    NUMBERS.forEach((column, i) => {
      show(column, given[i] ?? "", i >= wanted.length);
      if (i >= wanted.length) return;
      const label = { phase, number: say(`number_${wanted[i].name}`), word };
      fields[column].setAttribute("aria-label", say("numberLabel", label));
      fields[column].title = numbersOf(word, say)[i];
      fields[column].placeholder = wanted[i].required ? "" : say("optional");
    });
    numbers.hidden = !wanted.length;
    numbersCell.hidden = word === WINDOW;
  }

  const focus = (column) => {
    const wanted = column === "grip" ? grip : column === "remove" ? remove : fields[column];
    const found = wanted && !wanted.hidden && !wanted.disabled && wanted.closest("td,th") ? wanted : grip;
    if (!found.closest("[hidden]")) found.focus();
  };
  return { element, problem, update, focus };
}

/** The next value of a field: hundredths of sigma and of a selector's number, whole tokens, steps of 5 %, and "all" above
 * 100 %; null where there is none.
 * @param {string} column @param {string} value @param {1 | -1} by @param {boolean} large
 * @param {{low: number, high: number, above: boolean}} [number] the bounds of a selector's number
 * @returns {string | null} */
export function stepped(column, value, by, large, number) {
  if (number) {
    const now = value.trim() ? Number(value) : NaN;
    const next = Math.round((now + by * (large ? 0.1 : 0.01)) * 1e4) / 1e4;
    const inside = Math.max(number.low, Math.min(number.high, next));
    return Number.isNaN(inside) || inside === now || (number.above && inside === number.low) ? null : String(inside);
  }
  if (column === "until") {
    const next = Number(value) + by * (large ? 0.05 : 0.01);
    return Number.isFinite(next) ? formatNumber(Math.round(next * 1e4) / 1e4) : null;
  }
  if (value === "all") return by < 0 ? "95%" : null;
  const share = /^([0-9.]+)%$/.exec(value);
  if (share) {
    const next = Number(share[1]) + by * (large ? 20 : 5);
    return next >= 100 ? "all" : `${Math.max(1, Math.round(next * 100) / 100)}%`;
  }
  return /^[0-9]+$/.test(value) ? String(Math.max(1, Number(value) + by * (large ? 5 : 1))) : null;
}

/** The columns of a row that a field's value means.
 * @param {import("../core/rows.js").Row} row @param {string} column @param {string} value @returns {object} */
export function changeOf(row, column, value) {
  if (column === "attention" || column === "granularity") return { [column]: value };
  if (column === "pattern") {
    if (value === WINDOW) return { selector: null };
    const examples = ARGUMENTS[value].filter((each) => each.required).map((each) => each.example);
    return { selector: [value, ...examples].join(" "), window: null };
  }
  if (NUMBERS.includes(column)) {
    const [word, ...numbers] = row.selector.split(" ");
    const at = NUMBERS.indexOf(column);
    numbers[at] = value.trim();
    // Without a number those behind it would change their meaning.
    return { selector: [word, ...(numbers[at] ? numbers : numbers.slice(0, at))].join(" ") };
  }
  const window = [...row.window];
  window[AXES.indexOf(column)] = value.trim() || "all";
  return { window };
}
