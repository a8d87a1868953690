// The page of one trial: what it is, layer by layer, why it was tried, and how to take it away.
import { download, get, post } from "./api.js";
import { busy, byId, fill, h, notice, table } from "./dom.js";
import { asTable, paint } from "./figures.js";
import * as format from "./format.js";
import { problemBox } from "./page.js";

const { study, trial, name } = document.body.dataset;
const path = `/studies/${study}/trials/${trial}`;

function showHead(point) {
  const badge = byId("state");
  badge.textContent = point.state;
  badge.className = `badge badge-${point.state}`;
  badge.hidden = false;
  byId("place").textContent = point.on_front ? "on the front" : point.state === "complete" ? "dominated: another file is at least as good in everything" : "";
  byId("headline").textContent = point.words ? `${format.capital(point.words)}.` : `Trial ${trial} ended early`;
  byId("lead").textContent = `${format.capital(point.origin_words)}.${point.parent === null ? "" : ` It started from the weights of trial ${point.parent}.`}`;
  byId("message").hidden = !point.reason;
  byId("message").textContent = format.capital(point.reason);
}

function showActions(point) {
  const items = [];
  if (point.command) {
    items.push(h("button", { type: "button", class: "primary", id: "export", onclick: (event) => take(event.currentTarget) }, "Export bundle"));
    // Browsers have a clipboard only where the page came over TLS or from this machine; the command stands there anyway.
    if (navigator.clipboard) items.push(h("button", { type: "button", class: "secondary", id: "copy", onclick: (event) => copy(event.currentTarget, point.command) }, "Copy the command"));
  }
  if (["complete", "stopped"].includes(point.state) && !["baseline", "cascade"].includes(point.origin)) {
    const budget = h("input", { id: "refine-budget", value: "2m", size: "5", "aria-label": "Budget of the refined search" });
    items.push(h("span", { class: "joined" }, budget, h("button", { type: "button", class: "secondary", id: "refine", onclick: (event) => refine(event.currentTarget, budget.value.trim()) }, "Search around it")));
  }
  const here = point.front.indexOf(Number(trial));
  const step = (to, label) => (to === undefined ? null : h("a", { class: "button secondary", href: `/studies/${study}/trials/${to}` }, label));
  if (here >= 0) items.push(h("span", { class: "joined" }, step(point.front[here - 1], "← smaller"), step(point.front[here + 1], "larger →")));
  fill("actions", ...items);
  if (point.command) byId("actions").append(h("code", { class: "command" }, point.command));
}

async function take(button) {
  button.textContent = "Making the bundle …";
  const made = await busy(button, () => download(study, { pick: `trial:${trial}` }));
  if (made) notice("The bundle is in your downloads: model.onnx, its card, its plan, its float weights, and run.py, which runs it.", "good");
}

async function copy(button, command) {
  await busy(button, async () => {
    await navigator.clipboard.writeText(command);
    notice(["Copied: ", h("code", {}, command), " does the same in this workspace."], "good");
  });
}

async function refine(button, budget) {
  await busy(button, async () => {
    const made = await post(`/studies/${study}/refine`, { trial: Number(trial), ...(budget ? { budget } : {}) });
    notice(["A search around this trial was started: ", h("a", { href: `/studies/${made.id}` }, made.study), "."], "good");
  });
}

function showTiles(point) {
  const now = point.measurement, was = point.baseline;
  const metric = (value) => format.metric(value, point.is_share);
  const title = format.capital(point.metric_name);
  const interval = (ci, show) => (ci ? `95 %: ${show(ci[0])} to ${show(ci[1])}` : "");
  const tiles = now ? [
    ["File", format.bytes(now.size_bytes), was ? `dense: ${format.bytes(was.size_bytes)}` : ""],
    ["After zlib", format.bytes(now.compressed_bytes), "as it would travel"],
    ["Latency", format.ms(now.latency.latency_ms), was ? `dense: ${format.ms(was.latency_ms)}${point.tie ? ", a tie" : ""}${point.cascade ? "; the mean over samples" : ""}${now.latency.contended ? ", noisy" : ""}` : ""],
    ["Ratio to dense", now.latency.ratio.toFixed(3), interval(now.latency.ratio_ci, (v) => v.toFixed(3))],
    [`${title}, validation`, metric(now.val), now.val === null ? "not computed" : interval(now.val_ci, metric) || format.change(point.drop, point.direction)],
    [`${title}, test`, metric(now.test), now.test === null ? "not looked at" : interval(now.test_ci, metric) || format.change(point.test_drop, point.direction)],
  ] : [["File", "–", "ended before it was weighed"]];
  fill("tiles", ...tiles.map(([label, value, note]) => h("div", {}, h("dt", {}, label), h("dd", {}, value), h("dd", { class: "was" }, note))));
}

function showPlan(point) {
  fill("plan", ...point.plan_lines.map((line) => h("li", {}, line)));
  byId("why").textContent = point.why ? `Why it was tried: ${point.why}.` : point.origin === "search" ? "The sampler of this study does not say why." : "";
  const b = point.belief;
  if (!b) return;
  const drop = (value) => format.drop(value, point.direction), ratio = (value) => (value === null ? "–" : value.toFixed(3));
  const rows = [
    { what: "Loss", believed: `${drop(b.believed_drop)}, give or take ${drop(b.believed_sd)}`, came: drop(b.drop) },
    { what: "Size, to the dense file's", believed: ratio(b.believed_size), came: ratio(b.size) },
    { what: "Latency, to the dense file's", believed: ratio(b.believed_latency), came: ratio(b.latency) },
  ];
  byId("belief").className = "compact";
  fill("belief", table([["Of", (r) => r.what, "text"], ["Believed", (r) => r.believed], ["Came out", (r) => r.came]], rows, { caption: "Believed, and what came out" }));
}

async function showLayers(point) {
  const { layers } = point;
  if (!layers.length) {
    const without = point.origin === "cascade" ? "No file was made." : "The study has no record of its layers.";
    byId("layers-note").replaceChildren(...(point.cascade ? ["Two networks; their layers: ", ...parts(point.cascade), "."] : [without]));
    byId("figure-layers").closest("figure").hidden = true;
    byId("table-layers").closest("details").hidden = true;
    return;
  }
  const timed = layers[0].latency_ms !== null;
  byId("layers-note").textContent = `Layers of one group lose the same channels. Bytes are those of the weights as they are stored, with biases and scales. ${timed ? `A file is timed as a whole: milliseconds per layer are inferred from ${format.count(point.latency_files, "timed file")} of this study.` : "Too few files of this study were timed to tell the layers' latencies apart; multiply-accumulates stand in for them."}`;
  const total = (key) => layers.reduce((sum, layer) => sum + (layer[key] ?? 0), 0);
  const share = (layer) => (timed && total("latency_ms") ? `${((100 * layer.latency_ms) / total("latency_ms")).toFixed(0)}%` : "–");
  const remarks = (l) => (l.block ? `removed with ${l.block}` : [l.rank ? `two factors of rank ${l.rank}` : "", l.skip ? `left as it is: ${l.skip}` : ""].filter(Boolean).join("; "));
  const of = (now, dense, show = (v) => v.toLocaleString("en")) => [show(now), h("small", {}, `of ${show(dense)}`)];
  fill("table-layers", table([
    ["Layer", (l) => l.name, "text"], ["Kind", (l) => l.kind, "text"], ["Group", (l) => l.group ?? "–", "text"],
    ["Outputs", (l) => of(l.kept, l.channels)], ["Inputs", (l) => of(l.inputs, l.inputs_dense)], ["Bits", (l) => (l.bits ? of(l.bits, 32) : "–")],
    ["Bytes", (l) => of(l.size_bytes, l.size_bytes_dense, format.bytes)], ["Multiply-accumulates", (l) => of(l.macs, l.macs_dense)],
    [timed ? "Time, inferred" : "Time", (l) => (timed ? of(l.latency_ms, l.latency_ms_dense, (v) => `${(v * 1000).toFixed(1)} µs`) : "–")],
    ["Share of time", share], ["Remarks", remarks, "text"],
  ], layers, { label: "Layers beside the dense model's" }));
  const figure = await get(`${path}/figures/layers`);
  const place = await paint("layers", stacked(figure));
  addEventListener("resize", () => { if (place.isConnected) paint("layers", stacked(figure)); });
}

// Links to the two networks of a cascade.
function parts(cascade) {
  const link = (number) => h("a", { href: `/studies/${study}/trials/${number}` }, `trial ${number}`);
  return [link(cascade.first), " and ", link(cascade.second)];
}

// On a narrow page the four panels stand below one another.
function stacked(figure) {
  if (innerWidth >= 760) return figure;
  const layout = { ...figure.layout, height: figure.layout.height * 4 };
  ["", "2", "3", "4"].forEach((k, i) => {
    const top = 1 - i * 0.255;
    layout[`yaxis${k}`] = { ...layout[`yaxis${k}`], domain: [Math.max(0, top - 0.215), top], showticklabels: true, automargin: true, matches: undefined };
    layout[`xaxis${k}`] = { ...layout[`xaxis${k}`], domain: [0, 1], anchor: `y${k}` };
  });
  return { ...figure, layout };
}

async function showTraining(point) {
  const pairs = Object.entries(point.durations_s).map(([stage, seconds]) => [format.capital(stage), format.duration(seconds)]);
  const trained = point.cascade ? [["Trained", ["as ", ...parts(point.cascade)]]]
    : [["Trained", `${format.duration(point.trained_s)}${point.parent === null ? "" : ", parents included"}`], ["Samples seen", point.trained_samples.toLocaleString("en")]];
  fill("facts", ...[...trained, ...pairs, ["Artifact", h("code", {}, point.artifact ?? "none")]].flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]));
  if (!point.curve.length) {
    byId("figure-curve").replaceChildren(h("p", { class: "waiting" }, "It was not trained: there is no curve."));
    byId("table-curve").closest("details").hidden = true;
    byId("figure-curve").closest(".pair > div").hidden = point.origin === "cascade";
    return;
  }
  const figure = await get(`${path}/figures/curve`);
  await paint("curve", figure);
  asTable("table-curve", figure, ["Training, s", "Loss"]);
}

try {
  const point = await get(path);
  showHead(point);
  showActions(point);
  showTiles(point);
  showPlan(point);
  byId("card").textContent = point.card ?? "";
  byId("card").closest("section").hidden = !point.card;
  await Promise.all([showLayers(point), showTraining(point)]);
  document.body.dataset.ready = "yes";
} catch (error) {
  byId("main").replaceChildren(problemBox(error));
}
document.title = `Trial ${trial} of ${name} · autocompress`;
