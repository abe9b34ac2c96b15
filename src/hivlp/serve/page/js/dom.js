// Elements, made and found in one line.

export const $ = (id) => document.getElementById(id);

/** An element with its properties (`class`, `text`, `on…`, attributes) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with its attributes and children. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** An icon of the sprite in index.html. */
export const icon = (name) =>
  draw("svg", { class: "icon", "aria-hidden": "true" }, draw("use", { href: `#i-${name}` }));

/** A button that shows an icon and says what it does. */
export const iconButton = (name, label, onclick, more = {}) =>
  make("button", { type: "button", "aria-label": label, title: label, onclick, ...more }, icon(name));

const SAID = 3000; // milliseconds
let hiding = 0;

/** A sentence at the bottom of the page for a few seconds; screen readers say it. */
export function toast(text) {
  const place = $("toast");
  place.textContent = text;
  place.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (place.hidden = true), SAID);
}

export const count = (number) => number.toLocaleString("en");

/** `1 picture`, `2 pictures`. */
export const pictures = (number) => `${count(number)} ${number === 1 ? "picture" : "pictures"}`;

/** Whether a file is a picture, by what the browser knows of it or else by its name. */
export const isPicture = (file) => file.type.startsWith("image/") || /\.(heic|heif|avif|jxl|dng|cr2|nef|arw)$/i.test(file.name);

/** The last part of a path. */
export const fileName = (path) => path.split(/[/\\]/).pop() || path;

/** What a hit is called: its caption, or else its file's name. */
export const titleOf = (hit) => hit.caption || fileName(hit.path);

const DAY = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const MONTH = new Intl.DateTimeFormat("en", { month: "long", year: "numeric", timeZone: "UTC" });

/** A date as stored (ISO, local to the camera) in words; "" where there is none or it is none. */
export function dateOf(taken, month = false) {
  const found = /^(\d{4})-(\d\d)(?:-(\d\d))?/.exec(taken ?? "");
  if (!found) return "";
  const date = new Date(Date.UTC(+found[1], +found[2] - 1, +(found[3] ?? 1)));
  return Number.isNaN(date.getTime()) ? "" : (month || !found[3] ? MONTH : DAY).format(date);
}
