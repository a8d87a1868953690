// The form that starts a search. What the server refuses is said at the field that it is about.
import { post } from "./api.js";
import { byId, h } from "./dom.js";
import * as format from "./format.js";

const form = byId("launch-form");
let key = newKey(); // sent again with the same request: a second press starts nothing twice

export function prepareLaunch(builtins, devices) {
  byId("builtin").replaceChildren(...builtins.map((item) => h("option", { value: item.name, selected: item.name === "digits" }, item.name)));
  byId("device").replaceChildren(...devices.map((item) => h("option", { value: item.name }, item.queued || item.running?.length ? `${item.name} (busy)` : item.name)));
  const configs = new Map(builtins.map((item) => [item.name, item.config]));
  const hint = () => {
    const config = configs.get(byId("builtin").value);
    if (!config) return;
    const { metric, direction } = config.task;
    const isError = direction === "minimize" || ["mse", "mae"].includes(metric);
    byId("max-drop").nextSibling.textContent = isError ? " % more" : " points";
    byId("builtin-hint").textContent = `${config.model.factory} on ${config.data.factory}`;
    byId("budget").placeholder = format.duration(config.search.budget).replace(/\.0 min$/, "m").replace(/ min$/, "m").replace(/ s$/, "s").replace(/ h$/, "h");
  };
  byId("builtin").addEventListener("change", hint);
  hint();
}

for (const radio of form.elements.source) {
  radio.addEventListener("change", () => {
    const isFile = form.elements.source.value === "file";
    form.querySelector('[data-field^="builtin"]').hidden = isFile;
    form.querySelector('[data-field="study_file"]').hidden = !isFile;
  });
}
byId("study-file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) byId("study-text").value = await file.text();
});
form.addEventListener("input", () => { key = newKey(); });

// 128 random bits; browsers have randomUUID only where the page came over TLS or from this machine.
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  clear();
  const { body, errors } = collect();
  if (errors.length) { tell({ message: "Some values are not numbers.", errors }); return; }
  const button = byId("start");
  button.disabled = true;
  try {
    const study = await post("/studies", body, { "idempotency-key": key });
    location.assign(`/studies/${study.id}`);
  } catch (error) {
    tell(error);
  } finally {
    button.disabled = false;
  }
});

// What the form says, as the server wants it: shares, bytes and milliseconds under their dotted keys.
function collect() {
  const value = (name) => form.elements[name]?.value.trim() ?? "";
  const errors = [], set = {};
  const number = (name, field, { factor = 1, whole = false } = {}) => {
    if (!value(name)) return undefined;
    const found = Number(value(name).replace(",", "."));
    if (!Number.isFinite(found) || (whole && !Number.isInteger(found))) errors.push({ field, detail: `${value(name)} is no ${whole ? "whole number" : "number"}` });
    return found * factor;
  };
  const put = (field, found) => { if (found !== undefined) set[field] = found; };
  put("search.max_drop", number("max_drop", "search.max_drop", { factor: 0.01 }));
  const kilobytes = number("max_size", "search.max_size");
  put("search.max_size", kilobytes === undefined ? undefined : `${kilobytes}kB`);
  put("search.max_latency", number("max_latency", "search.max_latency"));
  const wanted = [...form.querySelectorAll('[name="objective"]:checked')].map((box) => box.value);
  if (wanted.length < 2) set["search.objectives"] = ["accuracy", ...wanted];
  const body = { set, device: value("device") || undefined, budget: value("budget") || undefined, name: value("name") || undefined };
  body.seed = number("seed", "search.seed", { whole: true });
  body.max_trials = number("max_trials", "search.max_trials", { whole: true });
  body.priority = number("priority", "priority", { whole: true });
  if (form.elements.source.value === "file") body.study_file = byId("study-text").value;
  else body.builtin = value("builtin");
  return { body, errors };
}

function clear() {
  byId("form-error").hidden = true;
  for (const error of form.querySelectorAll("p.error")) error.remove();
  for (const place of form.querySelectorAll(".has-error")) {
    place.classList.remove("has-error");
    const input = place.querySelector("input, select, textarea");
    input?.removeAttribute("aria-invalid");
    input?.removeAttribute("aria-describedby");
  }
}

// Errors go to their fields; what has no field of its own is said above the form. The first one gets the focus.
function tell({ message, errors = [] }) {
  const homeless = [];
  let first = null;
  for (const { field, detail } of errors) {
    const place = [...form.querySelectorAll("[data-field]")].find((found) => found.dataset.field.split(" ").includes(field) && !found.hidden);
    if (!place) { homeless.push(`${field}: ${detail}`); continue; }
    const input = place.querySelector("textarea") ?? place.querySelector("input:not([disabled]), select");
    const id = `error-${field.replaceAll(".", "-")}`;
    place.classList.add("has-error");
    place.append(h("p", { class: "error", id }, detail));
    input?.setAttribute("aria-invalid", "true");
    input?.setAttribute("aria-describedby", id);
    place.closest("details")?.setAttribute("open", "");
    first ??= input;
  }
  const box = byId("form-error");
  box.textContent = homeless.length ? homeless.join(" ") : errors.length ? "The search was not started: see below." : message;
  box.hidden = false;
  (first ?? box).focus();
}
