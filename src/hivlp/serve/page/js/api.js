// The service as the page asks it: see docs/serve.md for the routes.

/** An answer that is no success: `status`, and `retry` in seconds where the service said when to come again. */
export class ServiceError extends Error {
  constructor(message, status, retry = 0) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

/** An address of the service, seen from the page: a proxy may serve both below a folder of its own. */
const here = (address) => `.${address}`;

/** What is known of an item, with addresses that the page can ask for. */
function located(item) {
  for (const name of ["thumbnail", "original"]) if (item[name]) item[name] = here(item[name]);
  return item;
}

async function answered(address, options) {
  let response;
  try {
    response = await fetch(here(address), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached.", 0);
  }
  if (response.ok) return response;
  let message = `The service answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not every answer on the way is one of ours.
  }
  if (response.status === 401) message = "This page needs the service's token: open its address once with ?token=TOKEN behind it.";
  throw new ServiceError(message, response.status, Number(response.headers.get("Retry-After")) || 0);
}

/** The routes of one index. */
export class Service {
  constructor(name = "") {
    this.base = name ? `/indexes/${encodeURIComponent(name)}` : "";
  }

  async get(route, signal) {
    return (await answered(this.base + route, { signal })).json();
  }

  async send(method, route, body, signal) {
    const form = body instanceof FormData;
    const headers = form || body === undefined ? {} : { "Content-Type": "application/json" };
    // Thumbnails wait their turn: browsers open six connections, and what is asked next comes first.
    const options = { method, headers, signal, priority: "high", body: form || body === undefined ? body : JSON.stringify(body) };
    const response = await answered(this.base + route, options);
    return response.status === 204 ? null : response.json();
  }

  /** One page of a search; `uploads` are the pictures that its terms name. */
  async search(request, uploads, signal) {
    const answer = await this.send("POST", "/search", uploads.size ? this.form(request, uploads) : request, signal);
    answer.hits.forEach(located);
    return answer;
  }

  /** A request with the pictures that it names. */
  form(request, uploads) {
    const form = new FormData();
    form.append("request", new Blob([JSON.stringify(request)], { type: "application/json" }));
    for (const [name, file] of uploads) form.append(name, file, file.name || "picture");
    return form;
  }

  async item(id) {
    return located(await this.get(`/items/${id}`));
  }

  thumbnail(id, size = 320) {
    return here(`${this.base}/items/${id}/thumbnail?size=${size}`);
  }

  /** The map's positions, (n, 2) float32 in [-1, 1], and ids, (n,) int64; null while they are worked out. */
  async map(signal) {
    const response = await answered(`${this.base}/map`, { signal });
    if (response.status === 202) return null;
    const bytes = await response.arrayBuffer();
    const end = new Uint8Array(bytes).indexOf(10) + 1;
    const { count } = JSON.parse(new TextDecoder().decode(bytes.slice(0, end)));
    // The header's length is any; arrays must begin at multiples of their items.
    return {
      xy: new Float32Array(bytes.slice(end, end + 8 * count)),
      ids: new BigInt64Array(bytes.slice(end + 8 * count, end + 16 * count)),
    };
  }

  events(id) {
    return new EventSource(here(`${this.base}/jobs/${encodeURIComponent(id)}/events`));
  }
}

/** What the service has: its indexes and limits. */
export const state = async () => (await answered("/api/state", {})).json();
