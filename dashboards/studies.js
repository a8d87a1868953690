// The page of all studies, live: what runs, what waits, what was found, and the way to start another one.
import { all, get, listen, post } from "./api.js";
import { announce, byId, confirmed, emptyBox, fill, h, keepingFocus } from "./dom.js";
import * as format from "./format.js";
import { prepareLaunch } from "./launch.js";
import { Refresher } from "./live.js";
import { problemBox, showLink } from "./page.js";

const studies = new Map();
const chosen = new Set();
const cancels = new Map(); // id -> its button, kept while it asks whether it was meant
const WAITING = "queued", RUNNING = ["running", "finalising"];
let skew = 0; // of this clock, to the server's

async function reload() {
  const items = await all("/studies");
  studies.clear();
  for (const item of items) studies.set(item.id, item);
  render();
}

function keep(summary) {
  skew = Date.parse(summary.now) - Date.now();
  const before = studies.get(summary.id);
  studies.set(summary.id, { ...before, ...summary });
  if (before && RUNNING.includes(before.state) && !RUNNING.includes(summary.state)) announce(`${summary.study} is ${summary.state}`);
  render();
}

// Called at every event: the reader's focus must survive it.
const render = () => keepingFocus(replace);

function replace() {
  const items = [...studies.values()];
  const running = items.filter((s) => RUNNING.includes(s.state)), waiting = items.filter((s) => s.state === WAITING);
  const done = items.filter((s) => s.state !== WAITING && !RUNNING.includes(s.state));
  fill("running", ...(running.length ? running.map(card) : [h("div", { class: "panel quiet-box" }, h("p", {}, items.length ? "Nothing runs now." : "No search was started yet."), h("p", { class: "note" }, "A search takes a trained network, its data and a time budget, and gives back smaller and faster files of it, each one measured. The built-in digits study takes two minutes and fetches nothing."))]));
  byId("waiting-section").hidden = waiting.length === 0;
  waiting.sort((a, b) => (a.job?.position ?? 0) - (b.job?.position ?? 0));
  fill("waiting", ...waiting.map((s) => h("li", {}, h("a", { href: `/studies/${s.id}`, "data-focus": `open ${s.id}` }, s.study), h("span", {}, `${format.duration(s.budget_s)} on ${s.device}`), cancelButton(s))));
  fill("done", done.length ? doneTable(done) : emptyBox("Nothing is done yet", "Finished searches are listed here, with the best that each has found."));
  byId("compare").disabled = chosen.size < 2;
  tick();
}

function cancelButton(study) {
  if (!cancels.has(study.id)) {
    const button = confirmed("Cancel", "Really?", async () => keep(await post(`/studies/${study.id}/cancel`)), { class: "secondary small", "aria-label": `Cancel ${study.study}`, "data-focus": `cancel ${study.id}` });
    cancels.set(study.id, button);
  }
  return cancels.get(study.id);
}

function card(study) {
  const t = study.trials;
  return h("article", { class: "panel study-card", "data-study": study.id },
    h("div", { class: "bar" }, h("h3", {}, h("a", { href: `/studies/${study.id}`, "data-focus": `open ${study.id}` }, study.study)), h("span", { class: `badge badge-${study.state}` }, study.state === "running" && study.stage ? study.stage : study.state)),
    h("p", { class: "countdown" }, h("b", { "data-left": study.id }), ` left of ${format.duration(study.budget_s)} on ${study.device}`),
    h("progress", { max: String(study.budget_s), value: String(study.spent_s), "data-progress": study.id, "aria-label": `Budget of ${study.study}` }),
    h("p", { class: "note" }, `${format.count(t.total, "trial")}: ${t.complete} measured, ${t.stopped} stopped early${t.failed ? `, ${t.failed} failed` : ""}. Hypervolume ${format.hypervolume(study.hypervolume)}.`),
    study.best.length ? h("ul", { class: "best" }, study.best.map((sentence) => h("li", {}, format.capital(sentence)))) : h("p", { class: "none" }, "The dense model comes first; points follow."),
    h("p", { class: "actions" }, h("a", { class: "button primary", href: `/studies/${study.id}`, "data-focus": `watch ${study.id}` }, "Watch it"), cancelButton(study)));
}

function doneTable(items) {
  const head = [[h("span", { class: "hidden" }, "Compare"), "text"], ["Study", "text"], ["Found", "text"], ["Hypervolume", ""]];
  const choose = (study) => h("input", { type: "checkbox", checked: chosen.has(study.id), disabled: study.hypervolume === null, "aria-label": `Compare ${study.study}`, "data-focus": `compare ${study.id}`, onchange: (event) => { if (event.target.checked) chosen.add(study.id); else chosen.delete(study.id); byId("compare").disabled = chosen.size < 2; } });
  const row = (study) => h("tr", {},
    h("td", { class: "text" }, choose(study)),
    h("th", { scope: "row", class: "text" }, h("a", { href: `/studies/${study.id}`, "data-focus": `open ${study.id}` }, study.study), h("small", {}, h("span", { class: `badge badge-${study.state}` }, study.state))),
    h("td", { class: "text" }, study.best.length ? format.capital(study.best[0]) : study.error || "Nothing that beats the dense model", h("small", {}, `${format.count(study.trials.total, "trial")} in ${format.duration(study.spent_s)} on ${study.device ?? "no device"}, ${format.moment(study.created)}`)),
    h("td", {}, format.hypervolume(study.hypervolume)));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Studies that are done" },
    h("table", { class: "numbers studies" },
      h("thead", {}, h("tr", {}, head.map(([title, kind]) => h("th", { scope: "col", class: kind }, title)))),
      h("tbody", {}, items.map(row))));
}

// Every second: what is left of each budget.
function tick() {
  for (const place of document.querySelectorAll("[data-left]")) {
    const study = studies.get(place.dataset.left);
    if (!study?.deadline) { place.textContent = format.clock(study ? study.budget_s - study.spent_s : 0); continue; }
    const left = Math.max(0, (Date.parse(study.deadline) - skew - Date.now()) / 1000);
    place.textContent = format.clock(left);
    const bar = document.querySelector(`[data-progress="${study.id}"]`);
    if (bar) bar.value = study.budget_s - left;
  }
}

byId("compare").addEventListener("click", () => location.assign(`/compare?${[...chosen].map((study) => `study=${study}`).join("&")}`));
setInterval(tick, 1000);
const refresher = new Refresher(reload);

try {
  await reload();
  const [builtins, devices] = await Promise.all([get("/builtins"), get("/devices")]);
  prepareLaunch(builtins.items, devices.items);
  document.body.dataset.ready = "yes";
  listen("/events", { deleted: ({ id }) => { studies.delete(id); chosen.delete(id); render(); }, state: keep, job: () => refresher.ask(), front: (f) => { const s = studies.get(f.id); if (s) keep({ ...s, hypervolume: f.hypervolume, best: f.best, now: new Date(Date.now() + skew).toISOString() }); else refresher.ask(); } }, showLink);
} catch (error) {
  fill("running", problemBox(error));
}
