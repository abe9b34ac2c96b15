// Adding pictures: folders that the service may read, and files from here; with how far it has come.

import { $, count, iconButton, isPicture, make, pictures, toast } from "./dom.js";

const ENDED = new Set(["done", "failed", "cancelled", "canceled", "finished", "interrupted"]);
const AT_ONCE = 16;

export class Indexing {
  constructor(root, app, face) {
    Object.assign(this, { root, app, face });
    this.jobs = new Map(); // id -> {state, done, total, path, source}
    root.addEventListener("drop", (event) => {
      event.preventDefault();
      this.upload([...event.dataTransfer.files]);
    });
  }

  open() {
    this.show();
    this.root.showModal();
  }

  /** Follow what was under way before this page was opened. */
  async resume() {
    if (!this.app.about?.writable) return;
    try {
      const answer = await this.app.service.get("/jobs");
      for (const job of answer.jobs ?? answer) if (!ENDED.has(job.state)) this.follow(job);
    } catch {
      // Without jobs there is nothing to follow.
    }
  }

  show() {
    const roots = this.app.about?.roots ?? [];
    const path = make("input", { id: "index-path", name: "path", list: "index-roots", autocomplete: "off", placeholder: roots[0] ?? "/path/of/a/folder", value: roots.length === 1 ? roots[0] : null });
    const files = make("input", { type: "file", multiple: true, accept: "image/*", hidden: true, onchange: (event) => {
      this.upload([...event.target.files]);
      event.target.value = "";
    } });
    const form = make("form", { onsubmit: (event) => {
      event.preventDefault();
      this.start(path.value || roots[0]);
    } },
      make("label", { for: "index-path", text: "A folder on the service's machine" }),
      make("div", { class: "row" }, path, make("datalist", { id: "index-roots" }, ...roots.map((root) => make("option", { value: root }))),
        make("button", { class: "strong", text: "Index" })));
    this.list = make("ul", { class: "jobs" });
    this.root.replaceChildren(
      make("header", {}, make("h2", { id: "indexing-title", text: "Add pictures" }), iconButton("close", "Close", () => this.root.close(), { class: "ghost" })),
      form,
      make("button", { type: "button", class: "dropzone", onclick: () => files.click() }, make("span", { text: "Drop pictures here, or choose some" })),
      files,
      this.list,
    );
    this.draw();
  }

  async start(path) {
    try {
      this.follow(await this.app.service.send("POST", "/jobs", { kind: "index", paths: [path] }));
    } catch (error) {
      toast(error.message);
    }
  }

  follow(job) {
    const known = { done: 0, total: 0, ...job };
    this.jobs.set(job.id, known);
    known.source = this.app.service.events(job.id);
    const told = (event) => {
      let data;
      try {
        data = JSON.parse(event.data);
      } catch {
        return; // a sign of life
      }
      Object.assign(known, data);
      if (ENDED.has(known.state)) this.ended(known);
      this.draw();
    };
    for (const name of ["message", "progress", "state", "end", "done"]) known.source.addEventListener(name, told);
    known.source.addEventListener("error", async () => {
      if (known.source.readyState !== EventSource.CLOSED) return; // it connects again by itself
      Object.assign(known, await this.app.service.get(`/jobs/${job.id}`).catch(() => ({ state: "failed" })));
      if (ENDED.has(known.state)) this.ended(known);
      this.draw();
    });
    this.draw();
  }

  ended(job) {
    if (job.told) return;
    job.told = true;
    job.source?.close();
    this.face.finished();
    const failed = job.state === "failed";
    toast(failed ? (job.error ?? "Indexing failed.") : job.state === "done" || job.state === "finished" ? "The pictures are in." : "Indexing was stopped; what is in stays in.");
  }

  async upload(files) {
    const chosen = files.filter(isPicture);
    if (!chosen.length) return toast("Those are no pictures.");
    const job = { id: `here-${Date.now()}`, state: "running", done: 0, total: chosen.length, path: "from this device", here: true, added: 0 };
    this.jobs.set(job.id, job);
    this.draw();
    const failed = [];
    for (let first = 0; first < chosen.length && job.state === "running"; first += AT_ONCE) {
      const form = new FormData();
      for (const file of chosen.slice(first, first + AT_ONCE)) form.append("files", file, file.name);
      try {
        const report = await this.app.service.send("POST", "/items", form);
        failed.push(...(report.failed ?? []));
      } catch (error) {
        job.error = error.message;
        job.state = "failed";
      }
      job.done = Math.min(chosen.length, first + AT_ONCE);
      this.draw();
    }
    if (job.state === "running") job.state = "done";
    if (failed.length) job.error = `${pictures(failed.length)} could not be read.`;
    this.ended(job);
    this.draw();
  }

  async tell(job, word) {
    if (job.here) job.state = "cancelled";
    else {
      try {
        const answer = await this.app.service.send("POST", `/jobs/${job.id}/${word}`);
        if (!job.told) Object.assign(job, answer); // else the events were faster
      } catch (error) {
        toast(error.message);
      }
    }
    this.draw();
  }

  draw() {
    const running = [...this.jobs.values()].filter((job) => !ENDED.has(job.state));
    const button = $("show-indexing");
    button.classList.toggle("on", running.length > 0);
    const done = running.reduce((sum, job) => sum + (job.done ?? 0), 0);
    const total = running.reduce((sum, job) => sum + (job.total ?? 0), 0);
    button.title = running.length ? `Indexing: ${count(done)}${total ? ` of ${count(total)}` : ""}` : "Add pictures";
    button.setAttribute("aria-label", button.title);
    this.list?.replaceChildren(...[...this.jobs.values()].reverse().map((job) => this.line(job)));
  }

  line(job) {
    const ended = ENDED.has(job.state);
    const known = job.total > 0;
    const act = (word, text) => make("button", { type: "button", class: "quiet", text, onclick: () => this.tell(job, word) });
    return make("li", { "data-state": job.state },
      make("div", { class: "row" },
        make("span", { class: "what" }, make("bdi", { text: job.error ?? job.path ?? job.paths?.join(", ") ?? "" })),
        make("span", { class: "figure", text: `${count(job.done ?? 0)}${known ? ` of ${count(job.total)}` : ""}` })),
      make("progress", { "aria-label": "Pictures indexed", max: known ? job.total : 1, value: ended || known ? (known ? job.done : 1) : null }),
      make("div", { class: "row" }, make("small", { text: job.state }),
        !ended && make("span", {}, !job.here && (job.state === "paused" ? act("resume", "Resume") : act("pause", "Pause")), act("cancel", "Cancel"))));
  }
}
