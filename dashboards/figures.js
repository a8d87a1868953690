// Figures of the server: fetched as JSON, drawn, dimmed, and told as tables.
import { get } from "./api.js";
import { byId, table } from "./dom.js";
import { capital } from "./format.js";
import { crowd, draw } from "./plots.js";

const FAINT = 0.08;

// Fetches and draws a figure into its place; `change` may alter it first. What goes wrong is told in the place.
export async function show(name, path, change = (figure) => figure) {
  const place = byId(`figure-${name}`);
  let figure;
  try {
    figure = await get(path);
  } catch (error) {
    if (!place.classList.contains("js-plotly-plot")) place.replaceChildren(note(`This figure could not be made: ${error.message}`));
    return null;
  }
  await paint(name, change(figure));
  return figure;
}

export async function paint(name, figure) {
  const place = byId(`figure-${name}`);
  place.querySelector(".waiting")?.remove();
  await draw(place, figure, figure.config);
  return place;
}

// Names the figures of the loss after the metric that it is of: "Top5 accuracy lost against latency".
export function nameLosses({ metric_name: metric, direction }) {
  const loss = direction === "maximize" ? `${capital(metric)} lost` : `More ${metric}, in %,`;
  for (const [name, against] of [["accuracy_size", "file size"], ["accuracy_latency", "latency"]]) {
    const title = `${loss} against ${against}`;
    byId(`figure-${name}`).setAttribute("aria-label", title);
    document.querySelector(`[data-plot="${name}"] figcaption strong`).textContent = `${title}.`;
  }
}

// Only what is on the canvas behind a figure that is drawn already: a few milliseconds for ten thousand points.
export function tint(name, figure) {
  crowd(byId(`figure-${name}`), figure);
}

function note(text) {
  const line = document.createElement("p");
  line.className = "waiting";
  line.textContent = text;
  return line;
}

// The same figure with every trial that is not in `kept` (a Set, or null for all) almost gone.
export function dimmed(figure, kept) {
  if (!kept) return figure;
  const data = figure.data.map((trace) => {
    if (!trace.customdata || !trace.marker) return trace;
    const inside = trace.customdata.map((trial) => kept.has(trial));
    if (inside.every(Boolean)) return trace;
    const whole = trace.marker.opacity ?? 1;
    if (trace.type === "scatter3d") { // which knows one opacity for all of its points
      const color = trace.marker.color;
      return { ...trace, marker: { ...trace.marker, opacity: 1, color: inside.map((is) => alpha(color, is ? whole : FAINT)) } };
    }
    const marker = { ...trace.marker, opacity: inside.map((is) => (is ? whole : FAINT)) };
    return { ...trace, marker, error_x: cut(trace.error_x, inside), error_y: cut(trace.error_y, inside) };
  });
  return { ...figure, data };
}

// Parallel coordinates with only the lines of `kept`; a line is as many points as there are axes, and a gap.
export function filtered(figure, kept) {
  if (!kept) return figure;
  const data = figure.data.map((trace) => {
    const width = trace.x.length / trace.customdata.length;
    const take = (values) => trace.customdata.flatMap((trial, i) => (kept.has(trial) ? values.slice(i * width, (i + 1) * width) : []));
    return { ...trace, x: take(trace.x), y: take(trace.y) };
  });
  return { ...figure, data };
}

function alpha(hex, opacity) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

function cut(bars, inside) {
  if (!bars?.array) return bars;
  const only = (values) => values.map((value, i) => (inside[i] ? value : null));
  return { ...bars, array: only(bars.array), arrayminus: only(bars.arrayminus) };
}

// A plain figure as a table: x and y of every trace, as its axes name them.
export function asTable(id, figure, [xTitle, yTitle], { name, number = (value) => String(Number(value.toPrecision(5))) } = {}) {
  const rows = figure.data.flatMap((trace) => trace.x.map((x, i) => ({ name: trace.name, x, y: trace.y[i] })));
  const cell = (value) => (typeof value === "number" ? number(value) : value);
  const columns = [[xTitle, (row) => cell(row.x), typeof rows[0]?.x === "number" ? "" : "text"], [yTitle, (row) => cell(row.y)]];
  if (name) columns.unshift([name, (row) => row.name ?? "", "text"]);
  byId(id).replaceChildren(rows.length ? table(columns, rows, { label: `${yTitle} by ${xTitle}` }) : note("Nothing was recorded yet."));
}
