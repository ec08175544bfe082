"use strict";
// Figures, theme, tables, printing. Plotly is unpacked after the text has been painted.

const content = JSON.parse(document.getElementById("content").textContent);
const builders = {};  // figures that depend on what the reader has chosen; the others are content.figures
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const root = document.documentElement;
const SERIES = [1, 2, 3, 4, 5, 6, 7, 8].map((place) => `series-${place}`);

function escaped(text) {
  return String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
}

function shown(value) {
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : String(Number(value.toPrecision(4)));
}

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Plotly

let plotly = null;

function unpackPlotly() {
  plotly ??= (async () => {
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = element("script", await new Response(stream).text());
    document.head.append(script);
    return window.Plotly;
  })();
  return plotly;
}

function colours() {
  const style = getComputedStyle(root);
  return Object.fromEntries(
    ["ink", "paper", "faint", "line", "accent", ...SERIES].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]),
  );
}

// Colours of the page stand in figures by name, as "$ink"; scales as "$lines".
function withColours(value, key = "") {
  if (Array.isArray(value)) return /color/.test(key) ? value.map((one) => withColours(one, key)) : value;
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([k, inner]) => [k, withInner(k, inner)]));
  }
  if (typeof value !== "string" || !value.startsWith("$") || !/color/.test(key)) return value;
  return value === "$lines" ? content.scales.lines[isDark() ? "dark" : "light"] : (colours()[value.slice(1)] ?? value);
}

function withInner(key, inner) {
  if (Array.isArray(inner) && typeof inner[0] === "object" && inner[0] !== null) {
    return inner.map((one) => withColours(one));
  }
  return withColours(inner, key);
}

function themed(layout) {
  const { ink, paper, line, faint, accent } = colours();
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  const axes = Object.keys({ xaxis: 0, yaxis: 0, ...layout }).filter((key) => /^[xy]axis\d*$/.test(key));
  return {
    margin: { l: 60, r: 20, t: 24, b: 50 },
    ...withColours(layout),
    ...Object.fromEntries(axes.map((key) => [key, { ...axis, ...withColours(layout[key] ?? {}) }])),
    font: { color: ink, size: 12, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink, size: 12 }, align: "left" },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: faint, activecolor: accent },
    autosize: true,
    uirevision: "page",  // zoom and hidden entries of the key outlive what is drawn anew
  };
}

async function draw(place) {
  place.dataset.asked = "";
  try {
    await drawNow(await unpackPlotly(), place);
  } catch (error) {
    place.replaceChildren(element("p", `This figure cannot be drawn in this browser: ${error.message}`));
  }
}

function drawNow(Plotly, place) {
  const name = place.dataset.figure;
  const figure = builders[name] ? builders[name](place) : content.figures[name];
  const isFirst = !("drawn" in place.dataset);
  const data = withInner("data", figure.data);
  const done = Plotly.react(place, data, themed(figure.layout), CONFIG);
  place.dataset.drawn = "";
  if (isFirst) place.dispatchEvent(new CustomEvent("first-drawn"));
  return done;
}

const places = [...document.querySelectorAll("[data-figure]")];

function redraw(names = null) {
  return Promise.all(
    places
      .filter((place) => "asked" in place.dataset && (!names || names.includes(place.dataset.figure)))
      .map((place) => draw(place)),
  );
}

function drawWhenNear() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        observer.unobserve(entry.target);
        draw(entry.target);
      }
    },
    { rootMargin: "400px" },
  );
  // The browser paints the text before a script of 5 MB keeps it busy.
  requestAnimationFrame(() => setTimeout(() => places.forEach((place) => observer.observe(place)), 0));
}

// Theme

const scheme = matchMedia("(prefers-color-scheme: dark)");
let isPrinting = false;

function isDark() {
  return !isPrinting && (root.dataset.theme ? root.dataset.theme === "dark" : scheme.matches);
}

// In a sandbox storage throws; the choice then lasts as long as the page.
function remember(theme) {
  try {
    localStorage.setItem("bitfront-theme", theme);
  } catch { /* forbidden here */ }
}

function remembered() {
  try {
    return localStorage.getItem("bitfront-theme") ?? "";
  } catch {
    return "";
  }
}

function showTheme() {
  document.getElementById("theme").setAttribute("aria-pressed", String(isDark()));
  return redraw();
}

function startTheme() {
  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    showTheme();
  });
  scheme.addEventListener("change", showTheme);
  showTheme();
}

// Heat maps: a text for each cell, from those of its column and its row.
for (const name of Object.keys(content.figures).filter((one) => one.startsWith("bits-"))) {
  builders[name] = () => {
    const { data: [heat, ...others], layout } = content.figures[name];
    const { columns, rows } = heat.meta;
    return { data: [{ ...heat, text: rows.map((row) => columns.map((column) => `${column}<br>${row}`)) }, ...others], layout };
  };
}

// The axes in the order and with the brushes that the reader has given them.
function asLeft(dimensions, drawn) {
  if (!drawn) return dimensions.map((one, k) => ({ ...one, name: `axis ${k}` }));
  return drawn.map(({ name, constraintrange }) => ({
    ...dimensions[Number(name.split(" ")[1])], name, ...(constraintrange ? { constraintrange } : {}) }));
}

// Names of axes have less room on paper.
builders.space = (place) => {
  const { data: [given], layout } = content.figures.space;
  // Plotly itself would keep brushes by an axis's place, whichever axis is there now.
  const trace = { ...given, uirevision: false, dimensions: asLeft(given.dimensions, place.data?.[0].dimensions) };
  if (!isPrinting) return { data: [trace], layout };
  const small = { labelangle: -20, labelfont: { ...trace.labelfont, size: 9 }, tickfont: { ...trace.tickfont, size: 8 } };
  return { data: [{ ...trace, ...small }], layout: { ...layout, margin: { ...layout.margin, t: 70, r: 90 } } };
};

// Printing: light, everything drawn, as wide as the paper

const PRINTED_WIDTH = 680;

function startPrinting() {
  window.addEventListener("beforeprint", () => {
    isPrinting = true;
    root.dataset.printing = "";
    if (!window.Plotly) return;
    for (const place of places) {
      place.dataset.asked = "";
      drawNow(window.Plotly, place);
      const width = Math.min(PRINTED_WIDTH, place.clientWidth || PRINTED_WIDTH);
      window.Plotly.relayout(place, { width, autosize: false });
    }
  });
  window.addEventListener("afterprint", () => {
    isPrinting = false;
    delete root.dataset.printing;
    redraw();
  });
  // A page that is printed at once still has its figures.
  (window.requestIdleCallback ?? setTimeout)(() => unpackPlotly().catch(() => {}));
}

// Navigation: in a sandboxed frame of a blob's address the browser refuses to follow a link to a place in the page.

function startNavigation() {
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      const section = document.getElementById(link.getAttribute("href").slice(1));
      if (!section) return;
      event.preventDefault();
      section.setAttribute("tabindex", "-1");
      section.focus({ preventScroll: true });
      section.scrollIntoView();
    });
  }
}

// Tables

function sortBy(table, column, button) {
  const head = button.closest("th");
  const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value;
  const text = (row) => row.cells[column].textContent;
  const isNumeric = [...body.rows].some((row) => key(row) !== undefined);
  const isLast = (row) => (isNumeric ? key(row) === undefined : text(row) === "–");
  const rows = [...body.rows].filter((row) => !isLast(row));
  rows.sort((a, b) =>
    isNumeric ? Number(key(a)) - Number(key(b)) : text(a).localeCompare(text(b), undefined, { numeric: true }),
  );
  if (order === "descending") rows.reverse();
  body.append(...rows, ...[...body.rows].filter(isLast));
}

function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.querySelectorAll("thead button")].forEach((button, column) =>
      button.addEventListener("click", () => sortBy(table, column, button)),
    );
  }
}
