// What is asked, as the page holds it: kept in its address, and turned into a request.

/** Pictures that were pasted or dropped, by name; they live as long as the page. */
export const uploads = new Map();

export const blank = () => ({
  index: "",
  text: "",
  terms: [], // {kind: "text" | "item" | "upload", value, weight}
  where: {}, // field -> {values} or {min, max}
  after: "",
  before: "",
  order: "relevance",
  view: "",
  item: 0,
});

const STEPS = [-2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2];

/** The next weight up or down; there is no 0, which would ask for nothing. */
export function nextWeight(weight, up) {
  return up ? (STEPS.find((step) => step > weight) ?? 2) : (STEPS.findLast((step) => step < weight) ?? -2);
}

export function fromAddress(search) {
  const given = new URLSearchParams(search);
  const asked = blank();
  for (const name of ["index", "after", "before", "view"]) asked[name] = given.get(name) ?? "";
  asked.text = given.get("q") ?? "";
  asked.item = Number(given.get("item")) || 0;
  if (["newest", "oldest"].includes(given.get("order"))) asked.order = given.get("order");
  for (const term of given.getAll("t")) {
    const found = /^(-?[\d.]+)~(text|item|upload)~(.*)$/s.exec(term);
    if (!found || !Number(found[1])) continue;
    const [, weight, kind, value] = found;
    if (kind === "upload" && !uploads.has(value)) continue; // from before this page was loaded
    asked.terms.push({ kind, value: kind === "item" ? Number(value) : value, weight: Number(weight) });
  }
  for (const [key, value] of given) {
    if (!key.startsWith("w.")) continue;
    const range = /^(-?[\d.e+]*)\.\.\.?(-?[\d.e+]*)$/.exec(value);
    const name = key.slice(2);
    if (range) asked.where[name] = { min: range[1], max: range[2] };
    else {
      try {
        const values = JSON.parse(value);
        if (Array.isArray(values) && values.length) asked.where[name] = { values };
      } catch {
        // An address that somebody has edited.
      }
    }
  }
  return asked;
}

export function toAddress(asked) {
  const made = new URLSearchParams();
  if (asked.text) made.set("q", asked.text);
  for (const { kind, value, weight } of asked.terms) made.append("t", `${weight}~${kind}~${value}`);
  for (const [name, { values, min, max }] of Object.entries(asked.where)) {
    made.set(`w.${name}`, values ? JSON.stringify(values) : `${min}..${max}`);
  }
  for (const name of ["index", "after", "before", "view", "item"]) if (asked[name]) made.set(name, asked[name]);
  if (asked.order !== "relevance") made.set("order", asked.order);
  const query = made.toString();
  return query ? `./?${query}` : "./";
}

/** Whether it asks for anything, or for all items by date. */
export const isSearch = (asked) => asked.terms.length > 0 || asked.text.trim() !== "";

/** Whether two ask for the same hits. */
export const sameHits = (one, other) =>
  toAddress({ ...one, view: "", item: 0 }) === toAddress({ ...other, view: "", item: 0 });

/** Where a field that is not declared lies in the metadata. */
const pathOf = (name) => `'$."${name.replaceAll("'", "''")}"'`;

/** The body of POST /search, and the pictures that go with it; `declared` are the index's declared fields. */
export function requestOf(asked, declared, more) {
  const request = { group: isSearch(asked), ...more };
  const terms = asked.terms.map(({ kind, value, weight }) => ({ [kind]: value, weight }));
  const text = asked.text.trim();
  if (text) terms.unshift({ text, weight: 1 });
  if (terms.length === 1 && text) request.query = text;
  else if (terms.length) request.query = terms;
  const order = asked.order === "relevance" && !terms.length ? "newest" : asked.order;
  if (order !== "relevance") request.order = order;
  if (order !== "relevance" && terms.length) request.cut = true; // what is by date is what matches, not all there is
  const conditions = [];
  const params = [];
  for (const [name, { values, min, max }] of Object.entries(asked.where)) {
    const field = name in declared ? `"${name}"` : `metadata ->> ${pathOf(name)}`;
    if (values) {
      const given = `IN (${values.map(() => "?").join(", ")})`;
      // Of a list, such as keywords, each value counts: as the service tells which there are.
      const listed = `EXISTS (SELECT 1 FROM json_tree(metadata, ${pathOf(name)}) WHERE atom ${given})`;
      conditions.push(name in declared ? `${field} ${given}` : listed);
      params.push(...values);
    } else {
      for (const [sign, bound] of [[">=", min], ["<=", max]]) {
        if (bound === "") continue;
        conditions.push(`${field} ${sign} ?`);
        params.push(Number(bound));
      }
    }
  }
  if (conditions.length) Object.assign(request, { where: conditions.join(" AND "), params });
  const filter = {};
  if (asked.after) filter.after = asked.after;
  if (asked.before) filter.before = asked.before;
  if (Object.keys(filter).length) request.filter = filter;
  const named = asked.terms.filter((term) => term.kind === "upload").map((term) => term.value);
  return { request, uploads: new Map(named.map((name) => [name, uploads.get(name)])) };
}
