// Filters: the dates, and each field with the values that exist.

import { $, count, iconButton, make } from "./dom.js";

const MOST = 8; // values that are shown before one asks for the others

export class Filters {
  constructor(root, narrowed, app, face) {
    Object.assign(this, { root, narrowed, app, face });
    root.addEventListener("submit", (event) => event.preventDefault());
    root.addEventListener("keydown", (event) => event.key === "Escape" && this.toggle(false));
  }

  toggle(open = this.root.hidden) {
    this.root.hidden = !open;
    $("show-filters").setAttribute("aria-expanded", open);
    if (open) this.root.querySelector("input, button")?.focus();
    else if (this.root.contains(document.activeElement)) $("show-filters").focus();
  }

  show(asked) {
    this.chips(asked);
    const shown = JSON.stringify([asked.where, asked.after, asked.before, this.app.fields]);
    if (shown === this.shown) return;
    this.shown = shown;
    const focused = document.activeElement?.id;
    const parts = this.app.fields.map((field) => this.field(field, asked.where[field.name])).filter(Boolean);
    this.root.replaceChildren(this.dates(asked), ...parts);
    if (focused && !document.activeElement?.id) $(focused)?.focus();
  }

  /** Put one field's condition; null takes it away. */
  put(name, condition) {
    const { [name]: _, ...where } = this.app.asked.where;
    this.face.change({ where: condition ? { ...where, [name]: condition } : where });
  }

  dates(asked) {
    const input = (name, label) =>
      make("label", {}, make("span", { text: label }), make("input", {
        type: "date",
        id: `filter-${name}`,
        value: asked[name],
        onchange: (event) => this.face.change({ [name]: event.target.value }),
      }));
    return make("fieldset", {}, make("legend", { text: "Taken" }), make("div", { class: "range" }, input("after", "from"), input("before", "before")));
  }

  field(field, condition) {
    const { name, values = [], min, max } = field;
    if (name === "taken") return null; // the dates above
    const numeric = typeof min === "number" && typeof max === "number";
    if (numeric && min !== max && values.length > MOST) return this.range(field, condition);
    // What is different for each picture, such as a name, is nothing to narrow by.
    if (!values.length || (values.length > MOST && values.every(([, number]) => number === 1))) return null;
    const chosen = new Set(condition?.values ?? []);
    const button = ([value, number]) =>
      make("button", {
        type: "button",
        class: "value",
        "aria-pressed": chosen.has(value),
        onclick: () => {
          if (!chosen.delete(value)) chosen.add(value);
          this.put(name, chosen.size ? { values: [...chosen] } : null);
        },
      }, make("span", { text: String(value) }), make("small", { text: count(number) }));
    const list = make("div", { class: "values" }, ...values.slice(0, MOST).map(button));
    if (values.length > MOST) {
      const rest = values.slice(MOST);
      const open = () => list.lastChild.replaceWith(...rest.map(button));
      list.append(make("button", { type: "button", class: "rest", text: `${rest.length} more`, onclick: open }));
      if (rest.some(([value]) => chosen.has(value))) open();
    }
    return make("fieldset", {}, make("legend", { text: name }), list);
  }

  range({ name, min, max }, condition) {
    const current = { min: condition?.min ?? "", max: condition?.max ?? "" };
    const input = (side, label, most) =>
      make("label", {}, make("span", { text: label }), make("input", {
        type: "number",
        id: `filter-${name}-${side}`,
        step: "any",
        placeholder: String(most),
        value: current[side],
        onchange: (event) => {
          const made = { ...current, [side]: event.target.value };
          this.put(name, made.min || made.max ? made : null);
        },
      }));
    return make("fieldset", {}, make("legend", { text: name }), make("div", { class: "range" }, input("min", "from", min), input("max", "to", max)));
  }

  /** What is in force, beside the number of pictures. */
  chips(asked) {
    const chips = Object.entries(asked.where).map(([name, { values, min, max }]) => [
      `${name} ${values ? values.join(", ") : `${min || "…"} – ${max || "…"}`}`,
      () => this.put(name, null),
    ]);
    if (asked.after) chips.push([`from ${asked.after}`, () => this.face.change({ after: "" })]);
    if (asked.before) chips.push([`before ${asked.before}`, () => this.face.change({ before: "" })]);
    this.narrowed.replaceChildren(
      ...chips.map(([text, drop]) =>
        make("li", { class: "chip" }, make("span", { class: "label", text }), iconButton("close", `Remove the filter ${text}`, drop, { class: "remove" }))),
    );
    $("show-filters").classList.toggle("on", chips.length > 0);
  }
}
