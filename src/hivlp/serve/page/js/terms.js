// Terms of a query beside the text: texts, pictures and items, each a chip with its weight.

import { iconButton, make } from "./dom.js";
import { nextWeight, uploads } from "./query.js";

const previews = new Map();

export class Terms {
  constructor(root, app, face) {
    Object.assign(this, { root, app, face });
  }

  show(terms) {
    const shown = JSON.stringify(terms);
    if (shown === this.shown) return;
    this.shown = shown;
    const at = [...this.root.querySelectorAll(".weight")].indexOf(document.activeElement);
    this.root.replaceChildren(...terms.map((term, place) => this.chip(term, place, terms)));
    if (at >= 0) this.root.querySelectorAll(".weight")[Math.min(at, terms.length - 1)]?.focus();
  }

  chip(term, place, terms) {
    const put = (weight) => this.face.change(terms.with(place, { ...term, weight }));
    const label = make("span", { class: "label" });
    const name = { text: term.value, item: `picture ${term.value}`, upload: "your picture" }[term.kind];
    if (term.kind === "text") label.textContent = term.value;
    else label.append(make("img", { src: this.picture(term), alt: name }));
    const weight = make("button", {
      type: "button",
      class: "weight",
      role: "spinbutton",
      "aria-label": `Weight of ${name}`,
      "aria-valuenow": term.weight,
      "aria-valuemin": -2,
      "aria-valuemax": 2,
      title: "Weight: arrow keys, or click for more and Shift-click for less",
      text: `${term.weight > 0 ? "+" : "−"}${Math.abs(term.weight)}`,
      onclick: (event) => put(nextWeight(term.weight, !event.shiftKey)),
      onkeydown: (event) => {
        if (event.key === "ArrowUp" || event.key === "ArrowDown") {
          event.preventDefault();
          put(nextWeight(term.weight, event.key === "ArrowUp"));
        } else if (event.key === "Delete" || event.key === "Backspace") drop();
      },
    });
    const step = (up, text, does) =>
      make("button", { type: "button", class: "step", tabindex: -1, "aria-label": `${does} weight of ${name}`, text, onclick: () => put(nextWeight(term.weight, up)) });
    const drop = () => this.face.change(terms.toSpliced(place, 1));
    return make(
      "li",
      { class: `chip ${term.kind}${term.weight < 0 ? " against" : ""}` },
      label,
      step(false, "−", "Lower"),
      weight,
      step(true, "+", "Raise"),
      iconButton("close", `Remove ${name}`, drop, { class: "remove" }),
    );
  }

  picture({ kind, value }) {
    if (kind === "item") return this.app.service.thumbnail(value, 160);
    if (!previews.has(value)) previews.set(value, URL.createObjectURL(uploads.get(value)));
    return previews.get(value);
  }
}
