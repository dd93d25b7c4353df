"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const X_AXES = {
  steps: { title: DATA.clock ?? "environment steps", tickformat: "~s", values: (run) => run.steps },
  updates: { title: "updates", tickformat: "~s", values: (run) => run.updates, hover: "%{x:,.0f} updates" },
  hours: {
    title: "wall time (hours)",
    tickformat: "",
    values: (run) => run.wall_time_s.map((seconds) => (seconds === null ? null : seconds / 3600)),
    hover: "%{x:.2f} hours",
  },
};
const RETURN = "return";
const QUANTITIES = [RETURN, ...new Set(DATA.runs.flatMap((run) => Object.keys(run.diagnostics ?? {})))];
const MAX_SPAN = 100;
const dark = matchMedia("(prefers-color-scheme: dark)");
const finger = matchMedia("(pointer: coarse)"); // it scrolls where a mouse draws a zoom
const hovers = matchMedia("(hover: hover)");
const wide = matchMedia("(min-width: 60.01rem)");
const element = (id) => document.getElementById(id);

// ---------------------------------------------------------------- arithmetic

/** Exponential moving average with weights (1 - a)^age, a = 2 / (span + 1), normalised to sum to one. */
function ema(values, span) {
  const decay = 1 - 2 / (span + 1);
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum *= decay;
    weight *= decay;
    if (value === null) return null;
    sum += value;
    weight += 1;
    return sum / weight;
  });
}

function average(values) {
  if (values.includes(null)) return null;
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Sample standard deviation; 0 for a single value. */
function deviation(values) {
  if (values.includes(null)) return null;
  if (values.length === 1) return 0;
  const mean = average(values);
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1));
}

/** Steps that all of several lists share, in order. */
function commonSteps(lists) {
  const others = lists.slice(1).map((steps) => new Set(steps));
  return lists[0].filter((step) => others.every((steps) => steps.has(step)));
}

/** Mean and standard deviation over curves {steps, x, values}, one per seed, at the steps all have reached. */
function meanOverSeeds(curves) {
  const steps = commonSteps(curves.map((curve) => curve.steps));
  const places = curves.map((curve) => new Map(curve.steps.map((step, place) => [step, place])));
  const across = (name) => steps.map((step) => curves.map((curve, seed) => curve[name][places[seed].get(step)]));
  const values = across("values");
  return { steps, x: across("x").map(average), mean: values.map(average), std: values.map(deviation) };
}

/** 300000 as 300k. */
function engineering(number) {
  const [unit, suffix] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([least]) => number >= least) ?? [1, ""];
  return `${parseFloat((number / unit).toPrecision(6))}${suffix}`;
}

// ------------------------------------------------------------ runs and state

const RUNS = new Map(); // by task, then series

for (const run of DATA.runs) {
  const place = `${run.task}/${run.series}`;
  if (!RUNS.has(place)) RUNS.set(place, []);
  RUNS.get(place).push(run);
}

const runsOf = (task, series) => RUNS.get(`${task}/${series}`) ?? [];
const everyPlace = (items) => new Set(items.keys());

/** A run's chosen quantity, null where it was not measured. */
function measured(run, quantity) {
  const values = quantity === RETURN ? run.return_mean : run.diagnostics?.[quantity];
  return run.steps.map((_, place) => values?.[place] ?? null);
}

const state = readState();

/** What the controls are set to, from the address; what it does not say is the default. */
function readState() {
  const query = new URLSearchParams(location.hash.slice(1));
  const chosen = (key, names) =>
    query.has(key) ? new Set([...names.keys()].filter((place) => query.getAll(key).includes(names[place]))) : everyPlace(names);
  return {
    tasks: chosen("task", DATA.tasks.map((task) => task.name)),
    series: chosen("series", DATA.series.map((series) => series.label)),
    span: clampedSpan(query.get("span") ?? 5),
    x: Object.hasOwn(X_AXES, query.get("x")) ? query.get("x") : "steps",
    y: QUANTITIES.includes(query.get("y")) ? query.get("y") : RETURN,
    seeds: query.get("seeds") === "1",
  };
}

function clampedSpan(value) {
  const span = Math.round(Number(value));
  return Number.isFinite(span) ? Math.min(Math.max(span, 1), MAX_SPAN) : 5;
}

function writeState() {
  const query = new URLSearchParams();
  const write = (key, chosen, names) => {
    if (chosen.size === names.length) return;
    if (!chosen.size) query.append(key, "");
    [...chosen].sort((a, b) => a - b).forEach((place) => query.append(key, names[place]));
  };
  write("task", state.tasks, DATA.tasks.map((task) => task.name));
  write("series", state.series, DATA.series.map((series) => series.label));
  if (state.span !== 5) query.append("span", state.span);
  if (state.x !== "steps") query.append("x", state.x);
  if (state.y !== RETURN) query.append("y", state.y);
  if (state.seeds) query.append("seeds", 1);
  history.replaceState(null, "", `#${query}`);
}

let writing = 0;

/** Browsers refuse an address that changes at every move of a slider. */
function writeStateSoon() {
  clearTimeout(writing);
  writing = setTimeout(writeState, 200);
}

// -------------------------------------------------------------------- colours

const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function luminance(rgb) {
  const [r, g, b] = rgb.map((part) => (part <= 10 ? part / 3294 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** A series' colour; on a dark page mixed with white until it stands out from the page, 5 to 1. */
function colorOf(series) {
  const color = DATA.series[series].color;
  if (!dark.matches || !/^#[0-9a-f]{6}$/i.test(color)) return color;
  let rgb = [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
  while (luminance(rgb) < 0.25) rgb = rgb.map((part) => part + 0.1 * (255 - part));
  return `rgb(${rgb.map(Math.round).join(", ")})`;
}

// -------------------------------------------------------------------- drawing

/** Plotly reads its texts as HTML; a user's text stands for itself. */
function plotlyText(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);
const numberFormat = () => (state.y === RETURN ? ".2f" : ".4~g");
const lines = (...parts) => `${parts.filter(Boolean).join("<br>")}<extra></extra>`;

/** All traces of one panel: behind, the shades and the seeds; in front, the means. */
function traces(task) {
  const layers = [[], [], []];
  for (const series of [...state.series].sort((a, b) => a - b)) {
    const runs = runsOf(task, series).filter((run) => measured(run, state.y).some((value) => value !== null));
    if (!runs.length) continue;
    const curves = runs.map((run) => {
      const onSchedule = (_, place) => run.scheduled?.[place] ?? true; // the end of a run may be off it
      return {
        steps: run.steps.filter(onSchedule),
        x: X_AXES[state.x].values(run).filter(onSchedule),
        values: ema(measured(run, state.y).filter(onSchedule), state.span),
      };
    });
    const mean = meanOverSeeds(curves);
    if (runs.length > 1) layers[0].push(band(mean, series));
    if (state.seeds) {
      if (runs.length > 1) curves.forEach((curve) => layers[1].push(seedLine(curve, series)));
      runs.forEach((run) => layers[1].push(evaluations(run, series)));
    }
    layers[2].push(meanLine(mean, series, runs.length));
  }
  return layers.flat();
}

const named = (series, kind) => ({
  type: "scatter",
  name: plotlyText(DATA.series[series].label),
  meta: { series, kind },
});

function meanLine({ steps, x, mean, std }, series, count) {
  const format = numberFormat();
  return {
    ...named(series, "mean"),
    x,
    y: mean,
    mode: steps.length === 1 ? "markers" : "lines", // a line needs two points to be seen
    line: { color: colorOf(series), dash: DATA.series[series].dash, width: rem() * 0.13 },
    marker: { color: colorOf(series), size: rem() * 0.5 },
    customdata: steps.map((step, place) => [step, mean[place], std[place], count]),
    hovertemplate: lines(
      "<b>%{fullData.name}</b>",
      "%{customdata[0]:,} steps",
      X_AXES[state.x].hover,
      `mean %{customdata[1]:${format}}`,
      count > 1 && `std %{customdata[2]:${format}}`,
      count > 1 ? "%{customdata[3]} seeds" : "1 seed",
    ),
  };
}

/** The area within one standard deviation of the mean, a piece for each stretch without a gap. */
function band({ x, mean, std }, series) {
  const outline = { x: [], y: [] };
  for (const piece of stretches(mean)) {
    const back = [...piece].reverse();
    outline.x.push(...piece.map((i) => x[i]), ...back.map((i) => x[i]), null);
    outline.y.push(...piece.map((i) => mean[i] + std[i]), ...back.map((i) => mean[i] - std[i]), null);
  }
  return {
    ...named(series, "band"),
    ...outline,
    mode: "lines",
    line: { width: 0 },
    fill: "toself",
    fillcolor: colorOf(series),
    opacity: dark.matches ? 0.24 : 0.16,
    hoverinfo: "skip",
  };
}

/** Runs of places that have a value. */
function stretches(values) {
  const pieces = [[]];
  values.forEach((value, place) => (value === null ? pieces.push([]) : pieces.at(-1).push(place)));
  return pieces.filter((piece) => piece.length);
}

function seedLine(curve, series) {
  const line = { color: colorOf(series), width: rem() * 0.05 };
  return { ...named(series, "seed"), x: curve.x, y: curve.values, mode: "lines", line, opacity: 0.5, hoverinfo: "skip" };
}

/** What was measured, not smoothed. */
function evaluations(run, series) {
  const values = measured(run, state.y);
  const marker = { color: colorOf(series), size: rem() * 0.27, opacity: 0.55 };
  return {
    ...named(series, "evaluations"),
    x: X_AXES[state.x].values(run),
    y: values,
    mode: "markers",
    marker,
    customdata: run.steps.map((step, i) => [run.seed, step, run.return_mean[i], run.return_std[i], values[i]]),
    hovertemplate: lines(
      "<b>%{fullData.name}</b>, seed %{customdata[0]}",
      "%{customdata[1]:,} steps",
      X_AXES[state.x].hover,
      state.y !== RETURN && `${plotlyText(state.y).replaceAll("%", "&#37;")} %{customdata[4]:.4~g}`,
      "return %{customdata[2]:.2f} ± %{customdata[3]:.2f}",
    ),
  };
}

function layoutOf(plot) {
  const [ink, muted, grid, paper] = ["--ink", "--muted", "--grid", "--paper"].map(themed);
  const axis = { gridcolor: grid, linecolor: muted, tickcolor: muted, zeroline: false, showline: true, ticks: "outside", ticklen: 4, automargin: true };
  return {
    width: plot.clientWidth,
    height: plot.clientHeight,
    margin: { l: 10, r: rem(), t: rem() * 0.6, b: 10 },
    font: { family: "system-ui, sans-serif", size: rem() * 0.75, color: ink },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "closest",
    hoverlabel: { bgcolor: paper, font: { color: ink, size: rem() * 0.8, family: "system-ui, sans-serif" }, align: "left" },
    dragmode: finger.matches ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink },
    uirevision: `${state.x} ${state.y}`, // a zoom outlasts smoothing, not another axis
    xaxis: { ...axis, title: { text: X_AXES[state.x].title, standoff: 6 }, tickformat: X_AXES[state.x].tickformat, rangemode: "tozero", nticks: 7 },
    yaxis: { ...axis, title: { text: plotlyText(state.y), standoff: 8 }, nticks: 8 },
  };
}

function configOf(task) {
  return {
    displaylogo: false,
    displayModeBar: hovers.matches && "hover", // else Plotly would show it always
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    showTips: false,
    toImageButtonOptions: { format: "svg", filename: `${DATA.title} ${DATA.tasks[task].name}` },
  };
}

// --------------------------------------------------------------------- panels

const panels = new Map(); // by task, made when first wanted
let scheduled = 0;

// Hundreds of runs are drawn as they come into view.
const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) panels.get(Number(target.dataset.task)).inView = isIntersecting;
    schedule();
  },
  { rootMargin: "200px" },
);
const size = new ResizeObserver((entries) => {
  for (const { target } of entries) panels.get(Number(target.parentElement.dataset.task)).stale = true;
  schedule();
});

function schedule() {
  cancelAnimationFrame(scheduled);
  scheduled = requestAnimationFrame(() => panels.forEach((panel, task) => panel.stale && panel.inView && draw(task, panel)));
}

function draw(task, panel) {
  if (!panel.plot.clientWidth) return;
  panel.stale = false;
  Plotly.react(panel.plot, traces(task), layoutOf(panel.plot), configOf(task));
}

/** Bring the page to what the controls say. */
function update() {
  paintSwatches();
  element("reading").textContent = reading();
  const chosen = [...state.tasks].sort((a, b) => a - b).map(panelOf);
  for (const panel of panels.values()) panel.stale = true;
  const shown = [...element("panels").children];
  const wanted = chosen.map((panel) => panel.article);
  if (shown.length !== wanted.length || shown.some((article, place) => article !== wanted[place])) {
    element("panels").replaceChildren(...wanted);
  }
  chosen.forEach(writeKey);
  schedule();
}

function reading() {
  if (!state.tasks.size || !state.series.size) return "Choose at least one task and one series.";
  const smooth = state.span > 1 ? `moving average over ${state.span} evaluations` : "evaluations";
  const seeds = state.seeds ? " Points: single evaluations; thin lines: each seed." : "";
  return `Lines: mean over seeds of each seed's ${smooth}. Shade: ± one sample standard deviation over seeds.${seeds}`;
}

function panelOf(task) {
  if (!panels.has(task)) {
    const article = make("article", "panel");
    article.dataset.task = task;
    const { name, env_id: environment } = DATA.tasks[task];
    article.setAttribute("aria-label", `Learning curves of ${name}`);
    const title = make("h3", "", name);
    if (environment && environment !== name) title.append(" ", make("small", "", environment));
    const [key, plot] = [make("ul", "key"), make("div", "plot")];
    article.append(title, key, plot);
    panels.set(task, { task, article, key, plot, stale: true, inView: false });
    sight.observe(article);
    size.observe(plot);
  }
  return panels.get(task);
}

/** Which lines a panel has, and how many seeds each stands for. */
function writeKey({ task, key }) {
  const items = [...state.series].sort((a, b) => a - b).map((series) => {
    const runs = runsOf(task, series);
    if (!runs.length) return null;
    const item = make("li");
    item.append(swatch(series), make("span", "", DATA.series[series].label), make("span", "note", seedNote(runs)));
    return item;
  });
  key.replaceChildren(...items.filter(Boolean));
  if (!key.children.length) key.append(make("li", "empty", "no evaluations"));
}

function seedNote(all) {
  const runs = all.filter((run) => measured(run, state.y).some((value) => value !== null));
  if (!runs.length) return `no ${state.y}`;
  const count = runs.length === 1 ? "1 seed" : `${runs.length} seeds`;
  const common = commonSteps(runs.map((run) => run.steps));
  if (!common.length) return `${count}, no step in common`;
  const last = Math.max(...runs.map((run) => run.steps.at(-1)));
  return common.at(-1) === last ? count : `${count}, mean up to ${engineering(common.at(-1))}`;
}

function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

const DASHES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3" };

/** A piece of a series' line. */
function swatch(series) {
  const namespace = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(namespace, "svg");
  const line = document.createElementNS(namespace, "line");
  const place = { x1: 0, x2: 32, y1: 6, y2: 6, "stroke-width": 3, "stroke-dasharray": DASHES[DATA.series[series].dash] ?? "" };
  Object.entries(place).forEach(([name, value]) => line.setAttribute(name, value));
  line.setAttribute("stroke", colorOf(series));
  line.dataset.series = series;
  picture.setAttribute("viewBox", "0 0 32 12");
  picture.setAttribute("aria-hidden", "true");
  picture.classList.add("swatch");
  picture.append(line);
  return picture;
}

function paintSwatches() {
  for (const line of document.querySelectorAll(".swatch line")) line.setAttribute("stroke", colorOf(Number(line.dataset.series)));
}

// ------------------------------------------------------------------- controls

/** A checkbox for each item of a fieldset, and buttons for all and none. */
function fillChoices(key, names, decorate) {
  const fieldset = element(key);
  const boxes = names.map((name, place) => {
    const label = make("label", "choice");
    const box = make("input");
    box.type = "checkbox";
    box.autocomplete = "off"; // or Firefox keeps a box as it was before the page was loaded again
    box.addEventListener("change", () => {
      state[key][box.checked ? "add" : "delete"](place);
      changed();
    });
    label.append(box, ...decorate(place), make("span", "", name));
    return label;
  });
  for (const [text, chosen] of [["all", everyPlace(names)], ["none", new Set()]]) {
    const button = make("button", "", text);
    button.type = "button";
    button.setAttribute("aria-label", `${text} ${key}`);
    button.addEventListener("click", () => {
      state[key] = new Set(chosen);
      showState();
      changed();
    });
    fieldset.querySelector("legend").append(button);
  }
  fieldset.append(...boxes);
}

function fillSelect(id, options) {
  element(id).append(...Object.entries(options).map(([value, text]) => new Option(text, value)));
  element(id).addEventListener("change", (event) => {
    state[id] = event.target.value;
    changed();
  });
}

function setSpan(event) {
  if (event.target.value === "") return; // half typed
  state.span = clampedSpan(event.target.value);
  element(event.target.id === "span" ? "slider" : "span").value = state.span;
  changed();
}

/** Set the controls to the state. */
function showState() {
  for (const key of ["tasks", "series"]) {
    element(key).querySelectorAll("input").forEach((box, place) => (box.checked = state[key].has(place)));
  }
  for (const id of ["slider", "span"]) element(id).value = state.span;
  for (const id of ["x", "y"]) element(id).value = state[id];
  element("seeds").checked = state.seeds;
}

function changed() {
  update();
  writeStateSoon();
}

function startCurves() {
  if (!DATA.runs.length) return;
  element("curves").hidden = false;
  fillChoices("tasks", DATA.tasks.map((task) => task.name), () => []);
  fillChoices("series", DATA.series.map((series) => series.label), (series) => [swatch(series)]);
  fillSelect("x", Object.fromEntries(Object.entries(X_AXES).map(([key, axis]) => [key, axis.title])));
  fillSelect("y", Object.fromEntries(QUANTITIES.map((name) => [name, name])));
  element("slider").addEventListener("input", setSpan);
  element("span").addEventListener("input", setSpan);
  element("span").addEventListener("change", showState); // what was out of range shows as what it became
  element("seeds").addEventListener("change", (event) => {
    state.seeds = event.target.checked;
    changed();
  });
  element("form").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => {
    Object.assign(state, readState());
    showState();
    update();
  });
  dark.addEventListener("change", update);
  const fold = () => (element("controls").open = wide.matches);
  wide.addEventListener("change", fold);
  fold();
  showState();
  update();
}

// ------------------------------------------------------------ tables and trials

/** What a table says, exact where the page rounds. */
function csvOf(table) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const text = (cell) => quoted(cell.dataset.value ?? cell.textContent);
  return [...table.rows].map((row) => `${[...row.cells].map(text).join(",")}\n`).join("");
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // refused by the reader or the browser
  }
}

function addCopyButton(scroll) {
  const button = make("button", "copy", "Copy as CSV");
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(csvOf(scroll.querySelector("table")))) ? "Copied" : "The browser refuses to copy";
    setTimeout(() => (button.textContent = "Copy as CSV"), 2000);
  });
  scroll.after(button);
}

function showTrial(run) {
  const { name } = DATA.tasks[run.task];
  element("trial-title").textContent = `Trial ${run.trial_id}`;
  element("trial-note").textContent = `${name}, ${DATA.series[run.series].label}, seed ${run.seed}`;
  const settings = Object.entries(DATA.configs?.[run.config] ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  const rows = settings.map(([setting, value]) => {
    const row = make("tr");
    row.append(make("td", "", setting), make("td", "", typeof value === "string" ? value : JSON.stringify(value)));
    return row;
  });
  element("trial-settings").replaceChildren(...rows);
  element("trial").showModal();
}

function startTrials() {
  element("trials-hint").hidden = false;
  [...element("trials").querySelectorAll("tbody tr")].forEach((row, place) => {
    row.classList.add("opens");
    const button = make("button", "", row.cells[0].textContent); // for the keyboard; the mouse has all of the row
    row.cells[0].replaceChildren(button);
    row.addEventListener("click", () => showTrial(DATA.runs[place]));
  });
}

startCurves();
startTrials();
document.querySelectorAll(".scroll").forEach(addCopyButton);
