// How an answer came about: time by stage, the plan, and where each level moved the pictures.

import { draw, iconButton, make, titleOf } from "./dom.js";
import { isSearch, requestOf } from "./query.js";

const SHOWN = 16; // of the last stage's ranks
const [ROW, LEFT, STEP] = [22, 30, 104];

export class Inspector {
  constructor(root, corner, app) {
    Object.assign(this, { root, corner, app });
    root.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
  }

  toggle() {
    if (this.root.hidden) this.open();
    else this.close();
  }

  open() {
    this.root.hidden = false;
    this.corner.setAttribute("aria-expanded", true);
    document.body.classList.add("inspecting");
    this.show();
    this.root.querySelector("button")?.focus();
  }

  close() {
    if (this.root.hidden) return;
    const inside = this.root.contains(document.activeElement);
    this.root.hidden = true;
    this.corner.setAttribute("aria-expanded", false);
    document.body.classList.remove("inspecting");
    if (inside) this.corner.focus();
  }

  /** A new answer is shown: its inside too, if that is open. */
  answered() {
    if (!this.root.hidden) this.show();
  }

  async show() {
    const { answer, asked } = this.app;
    if (!answer) return;
    this.asking?.abort();
    this.asking = new AbortController();
    const head = make("header", {}, make("h2", { text: "How this was found" }), iconButton("close", "Close the inspector", () => this.close(), { class: "ghost" }));
    const moves = make("div", { class: "moves" }, make("p", { class: "faint", text: isSearch(asked) ? "…" : "By date: no level was asked." }));
    const plan = make("div");
    const focused = this.root.contains(document.activeElement);
    this.root.replaceChildren(head, times(answer.timings_ms ?? {}), plan, moves);
    if (focused) this.root.querySelector("button").focus();
    plan.replaceChildren(...planned(answer.plan ?? [], null));
    if (!isSearch(asked)) return;
    try {
      const { request, uploads } = requestOf(asked, this.app.about?.fields ?? {}, { k: 40, offset: 0, inspect: true, explain: true });
      const inside = await this.app.service.search(request, uploads, this.asking.signal);
      plan.replaceChildren(...planned(inside.plan ?? [], inside.explain));
      moves.replaceChildren(...(inside.inspect ? this.moves(inside) : []));
    } catch (error) {
      if (error.name !== "AbortError") moves.replaceChildren(make("p", { class: "faint", text: error.message }));
    }
  }

  /** A line for each picture from its rank by one level to that by the next. */
  moves({ inspect: { stages }, hits }) {
    const ranked = stages.filter((stage) => stage.ranks.length);
    if (!ranked.length) return [];
    const last = ranked.at(-1);
    const top = [...last.ranks].sort((one, other) => one[2] - other[2]).slice(0, SHOWN);
    const rankIn = (stage, id) => stage.ranks.find(([each]) => each === id)?.[2];
    const names = new Map(hits.map((hit) => [hit.id, titleOf(hit)]));
    const width = LEFT + STEP * (ranked.length - 1) + 190;
    // What began beyond the ranks that are shown is drawn at the bottom edge, with its rank beside.
    const edge = ROW * (SHOWN + 1);
    const y = (rank) => 26 + (rank === undefined || rank > SHOWN ? edge : ROW * rank);
    const picture = draw("svg", { viewBox: `0 0 ${width} ${edge + 48}`, role: "img", "aria-label": `Ranks of the first ${top.length} pictures by ${ranked.map((stage) => stage.name).join(", then ")}` });
    ranked.forEach((stage, place) => picture.append(label(LEFT + STEP * place, 16, stage.name, "head", place ? "middle" : "start")));
    for (const [id] of top) {
      const ranks = ranked.map((stage) => rankIn(stage, id));
      const [first, end] = [ranks[0] ?? SHOWN + 1, ranks.at(-1)];
      const kind = first > end ? "up" : first < end ? "down" : "same";
      const line = ranks.map((rank, place) => `${place ? "L" : "M"}${LEFT + STEP * place} ${y(rank)}`).join(" ");
      picture.append(draw("path", { d: line, class: kind }));
      ranks.forEach((rank, place) => picture.append(draw("circle", { cx: LEFT + STEP * place, cy: y(rank), r: 2.5, class: kind })));
      picture.append(label(LEFT - 8, y(first) + 4, first > SHOWN ? "" : String(first), "rank", "end"));
      const name = names.get(id) ?? `picture ${id}`;
      const x = LEFT + STEP * (ranked.length - 1) + 10;
      const from = first > SHOWN ? `  from ${first}` : "";
      picture.append(label(x, y(end) + 4, `${short(name, from ? 17 : 26)}${from}`, "name", "start"));
    }
    return [make("h3", { text: ranked.length > 1 ? "Moved between the levels" : "Ranks" }), picture];
  }
}

const label = (x, y, text, kind, anchor) => {
  const made = draw("text", { x, y, class: kind, "text-anchor": anchor });
  made.textContent = text;
  return made;
};

const short = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}…` : name);

function times(timings) {
  const stages = Object.entries(timings).filter(([name]) => name !== "total");
  const sum = stages.reduce((total, [, value]) => total + value, 0) || 1;
  const width = 300;
  let left = 0;
  const bar = draw("svg", { viewBox: `0 0 ${width} 6`, class: "times", "aria-hidden": "true", preserveAspectRatio: "none" });
  stages.forEach(([, value], place) => {
    const wide = (value / sum) * width;
    bar.append(draw("rect", { x: left, y: 0, width: Math.max(0, wide - 1), height: 6, class: `stage-${place % 4}` }));
    left += wide;
  });
  const rows = Object.entries(timings).map(([name, value]) =>
    make("div", {}, make("dt", { text: name }), make("dd", { text: `${value.toFixed(value < 10 ? 2 : 1)} ms` })));
  return make("section", {}, make("h3", { text: "Time" }), stages.length > 0 && bar, make("dl", { class: "figures" }, ...rows));
}

/** Stages as they ran, and why this plan was chosen. */
function planned(plan, explain) {
  if (!plan.length) return [];
  const steps = plan.map(({ stage, ...numbers }) =>
    make("li", {}, make("strong", { text: stage }), make("span", { text: Object.entries(numbers)
      .map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(" · ") })));
  const reason = typeof explain?.reason === "string" ? explain.reason : typeof explain?.why === "string" ? explain.why : "";
  return [make("h3", { text: "Plan" }), make("ol", { class: "plan" }, ...steps), reason && make("p", { class: "faint", text: reason })];
}
