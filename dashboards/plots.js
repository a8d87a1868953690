// Draws plotly figures in the colours of the page, and draws them again when those change.
/* global Plotly */
import { cloud, corners } from "./cloud.js";

const NARROW = 560;
const NAME = { narrow: 18, wide: 34 }; // characters of a layer's name beside its bars
const drawn = new Map(); // element -> { figure, config }
let probe;

// A colour token as plotly wants it: tokens differ between light and dark, so the browser has to resolve them.
export function color(name) {
  if (!probe) {
    probe = document.createElement("span");
    probe.hidden = true;
    document.body.append(probe);
  }
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

export function themed(layout) {
  const ink = color("--plot-ink"), grid = color("--plot-grid"), mesh = color("--plot-mesh");
  const next = { ...layout, font: { ...layout.font, color: ink } };
  next.hoverlabel = { ...layout.hoverlabel, bgcolor: color("--card"), bordercolor: color("--edge") };
  next.hoverlabel.font = { ...next.hoverlabel.font, color: color("--ink") };
  for (const key of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(key)) next[key] = { ...layout[key], ...shortened(layout[key]), gridcolor: grid, color: ink };
  }
  if (innerWidth < NARROW && layout.margin) next.margin = { ...layout.margin, l: Math.min(layout.margin.l, 48), r: Math.min(layout.margin.r, 20) };
  next.annotations = layout.annotations?.map((note) => ({ ...note, font: { ...note.font, color: ink } }));
  if (!layout.scene) return next;
  next.scene = { ...layout.scene };
  if (innerWidth < NARROW && layout.scene.camera) { // stand further back, or the axes are cut off
    const { eye, ...camera } = layout.scene.camera;
    next.scene.camera = { ...camera, eye: { x: eye.x * 1.45, y: eye.y * 1.45, z: eye.z * 1.45 } };
  }
  for (const axis of ["xaxis", "yaxis", "zaxis"]) {
    next.scene[axis] = { ...layout.scene[axis], gridcolor: mesh, zerolinecolor: mesh, color: ink };
  }
  return next;
}

// Names that would take the place of what they name: the middle goes, for layers differ at both ends.
function shortened(axis) {
  if (axis.type !== "category" || !axis.tickvals) return {};
  const most = innerWidth < NARROW ? NAME.narrow : NAME.wide, half = (most - 1) >> 1;
  return { ticktext: axis.tickvals.map((name) => (name.length > most ? `${name.slice(0, most - 1 - half)}…${name.slice(-half)}` : name)) };
}

// Filled marks that matter get a rim in the colour of the page, or they would melt into the crowd behind them.
function rimmed(trace) {
  const { marker } = trace;
  if (trace.type !== "scatter" || !marker || marker.size < 9 || /open|thin|-ns|star/.test(marker.symbol)) return trace;
  return { ...trace, marker: { ...marker, line: { width: 1.2, color: color("--card") } } };
}

export async function draw(place, figure, config) {
  drawn.set(place, { figure, config });
  // On a narrow screen the buttons would cover the figure; touch zooms without them.
  const shown = innerWidth < NARROW ? { ...config, displayModeBar: false } : config;
  const many = crowded(figure);
  const rest = figure.data.filter((trace) => trace.type !== "scattergl");
  await Plotly.react(place, [...corners(many), ...rest.map(rimmed)], themed(figure.layout), shown);
  cloud(place, many);
}

const crowded = (figure) => figure.data.filter((trace) => trace.type === "scattergl");

// Shows the crowd of another state of a figure that is drawn.
export function crowd(place, figure) {
  cloud(place, crowded(figure));
}

export function redraw() {
  for (const [place, { figure, config }] of drawn) if (place.isConnected) draw(place, figure, config);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("themechange", redraw);
// Paper is light, whatever the screen is, and of a width that nobody tells: drawings become scalable for it.
let theme;
addEventListener("beforeprint", () => {
  theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  redraw();
  for (const sheet of document.querySelectorAll(".canvas .main-svg")) {
    sheet.setAttribute("viewBox", `0 0 ${sheet.getAttribute("width")} ${sheet.getAttribute("height")}`);
    sheet.style.maxWidth = `${sheet.getAttribute("width")}px`; // smaller where the paper is, never larger
  }
});
addEventListener("afterprint", () => {
  if (theme === undefined) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  for (const sheet of document.querySelectorAll(".canvas .main-svg")) {
    sheet.removeAttribute("viewBox");
    sheet.style.maxWidth = "";
  }
  redraw();
});
