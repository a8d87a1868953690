// The REST interface and the event stream of the server that sent this page; nothing else is ever asked.
const BASE = "/api/v1";

export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || document.title || `The server answered ${status}.`);
    this.status = status;
    this.errors = document.errors ?? [];
  }
}

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(BASE + path, { credentials: "same-origin", ...options });
  } catch {
    throw new Problem(0, { detail: "The server cannot be reached. It may have been stopped; searches go on when it is started again." });
  }
  if (answer.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  const isJson = (answer.headers.get("content-type") ?? "").includes("json");
  const body = isJson ? await answer.json() : {};
  if (!answer.ok) throw new Problem(answer.status, body);
  return body;
}

export const get = (path) => request(path);

export const post = (path, body = {}, headers = {}) => request(path, {
  method: "POST",
  headers: { "content-type": "application/json", ...headers },
  body: JSON.stringify(body),
});

export const remove = (path) => request(path, { method: "DELETE" });

// Every page of a list that comes in pages.
export async function all(path, limit = 200) {
  const items = [];
  let after = null;
  do {
    const page = await get(`${path}?limit=${limit}${after === null ? "" : `&after=${encodeURIComponent(after)}`}`);
    items.push(...page.items);
    after = page.next;
  } while (after !== null && after !== undefined);
  return items;
}

// Listens to events; handlers: { trial(data), state(data), ... }. The browser comes back by itself with its last id.
export function listen(path, handlers, onLink = () => {}) {
  const source = new EventSource(BASE + path);
  source.addEventListener("open", () => onLink("live"));
  source.addEventListener("error", () => onLink(source.readyState === EventSource.CLOSED ? "lost" : "connecting"));
  for (const [kind, handler] of Object.entries(handlers)) {
    source.addEventListener(kind, (event) => handler(JSON.parse(event.data)));
  }
  source.addEventListener("heartbeat", () => onLink("live"));
  addEventListener("pagehide", () => source.close());
  return source;
}

// Makes a bundle and hands it to the browser's downloads; resolves with the finished export.
export async function download(study, wanted) {
  let made = await post(`/studies/${study}/exports`, wanted);
  while (made.state !== "done" && made.state !== "failed") {
    await new Promise((next) => setTimeout(next, 400));
    made = await get(`/exports/${made.id}`);
  }
  if (made.state === "failed") throw new Problem(422, { detail: made.error || "The bundle could not be made." });
  const link = document.createElement("a");
  link.href = `${BASE}/exports/${made.id}/file`;
  link.download = "";
  document.body.append(link);
  link.click();
  link.remove();
  return made;
}
