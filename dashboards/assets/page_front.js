// The front: points by two metrics, coloured by a third; what a click selects.

const { trials, front } = content;
const chosen = { x: front?.x, y: front?.y, colour: front?.colour, trial: null };
const LINE_LENGTH = 60;  // characters of a line of the hover

const label = (metric) => front.metrics[metric] ?? metric;
const valueOf = (metric, i) => trials.metrics[metric]?.[i] ?? null;

// [8, 2, 2, 3] as "8 2×2 3"
function inRuns(bits) {
  const runs = [];
  for (const width of bits) {
    if (runs.length && runs.at(-1)[0] === width) runs.at(-1)[1] += 1;
    else runs.push([width, 1]);
  }
  return runs.map(([width, count]) => (count > 1 ? `${width}×${count}` : `${width}`)).join(" ");
}

function wrapped(text) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + word.length > LINE_LENGTH) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines.join("<br>&nbsp;&nbsp;");
}

function settingsOf(i) {
  return Object.entries(trials.settings).map(([name, values]) => [name, values[i]]).filter(([, value]) => value !== null);
}

function heading(i) {
  const sweep = trials.sweep ? `${trials.sweep[i]}, ` : "";
  return `${sweep}trial ${trials.number[i]}${i === front.knee ? " ◆ knee" : ""}`;
}

function hover(i) {
  const metrics = front.hover.map((name) => [label(name), valueOf(name, i)]).filter(([, value]) => value !== null);
  const bits = trials.bits[i];
  const widths = bits
    ? [`weights ${inRuns(bits[1])}`, `activations ${inRuns(bits[2])}`]
    : [`mean bits: weights ${shown(valueOf("mean_weight_bits", i) ?? "?")}, ` +
       `activations ${shown(valueOf("mean_act_bits", i) ?? "?")}`];
  return [
    `<b>${escaped(heading(i))}</b>`,
    ...metrics.map(([name, value]) => `${escaped(name)}: ${shown(value)}`),
    ...settingsOf(i).map(([name, value]) => wrapped(escaped(`${name} = ${shown(value)}`))),
    ...widths.map((line) => wrapped(escaped(line))),
    `policy ${trials.hash[i].slice(0, 10)}`,
  ].join("<br>");
}

const LOG = ["bops_g", "bops_paper_g", "compression", "storage_mb", "storage_mib", "device_hours"];

// Round numbers between the ends (as logarithms), no more than fit; null where there are too few.
function logTicks([low, high]) {
  for (const factors of [[1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9], [1, 1.5, 2, 3, 4, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let decade = Math.floor(low); decade <= high; decade++) {
      for (const factor of factors) {
        const place = decade + Math.log10(factor);
        if (place >= low && place <= high) found.push(Number((factor * 10 ** decade).toPrecision(6)));
      }
    }
    if (found.length <= 9 || factors.length === 1) return found.length > 1 ? found : null;
  }
}

function axisOf(metric, bounds) {
  const values = trials.metrics[metric].filter((value) => value !== null);
  const isLog = LOG.includes(metric) && values.every((value) => value > 0);
  const seen = [...values, ...bounds.filter((bound) => !isLog || bound > 0)].map((v) => (isLog ? Math.log10(v) : v));
  const low = Math.min(...seen), high = Math.max(...seen);
  const pad = 0.06 * (high - low) || (isLog ? 0.15 : Math.abs(high) * 0.05 || 1);
  const range = [low - pad, high + pad];
  const title = `${label(metric)}${isLog ? ", log scale" : ""}`;
  const ticks = isLog ? logTicks(range) : null;
  return { title: { text: escaped(title) }, type: isLog ? "log" : "linear", range,
    ...(ticks ? { tickvals: ticks, ticktext: ticks.map(shown) } : {}) };
}

// A constraint's line, with the side that breaks it shaded as far as a reader may scroll.
function constraintMarks({ metric, relation, bound }, letter, axis) {
  const other = letter === "x" ? "y" : "x";
  const isLog = axis.type === "log";
  const at = isLog ? Math.log10(bound) : bound;
  const beyond = at + (relation === "<=" ? 20 : -20) * (axis.range[1] - axis.range[0]);
  const end = isLog ? 10 ** Math.max(Math.min(beyond, 290), -290) : beyond;
  const across = { [`${other}ref`]: `${other} domain`, [`${other}0`]: 0, [`${other}1`]: 1, layer: "below" };
  const text = escaped(`${label(metric)} ${relation === "<=" ? "≤" : "≥"} ${shown(bound)}`);
  const isMost = relation === "<=";
  // Beside the line, on the side that keeps the constraint.
  const where = letter === "x"
    ? { x: at, y: 1, yref: "y domain", xanchor: isMost ? "right" : "left", yanchor: "top" }
    : { x: 0, xref: "x domain", y: at, xanchor: "left", yanchor: isMost ? "top" : "bottom" };
  return {
    shapes: [
      { type: "rect", [`${letter}0`]: bound, [`${letter}1`]: end, ...across, fillcolor: "$faint", opacity: 0.15, line: { width: 0 } },
      { type: "line", [`${letter}0`]: bound, [`${letter}1`]: bound, ...across, line: { color: "$faint", width: 1.5, dash: "dash" } },
    ],
    annotations: [note(text, where, "$faint")],
  };
}

function note(text, where, color) {
  return { text, ...where, showarrow: false, font: { color, size: 11 } };
}

function referenceMarks() {
  const found = chosen.y === "top1" ? front.references : [];
  return {
    shapes: found.map(({ top1 }) => ({ type: "line", xref: "x domain", x0: 0, x1: 1, y0: top1, y1: top1, layer: "below",
      line: { color: "$accent", width: 1.5, dash: "dot" } })),
    annotations: found.map(({ name, top1 }) =>
      note(escaped(name), { x: 1, xref: "x domain", y: top1, xanchor: "right", yanchor: "bottom" }, "$accent")),
  };
}

const KINDS = {
  beyond: { symbol: "x-thin-open", size: 9, opacity: 0.6 },
  dominated: { symbol: "circle", size: 8, opacity: 0.35 },
  front: { symbol: "circle", size: 12, opacity: 1 },
  knee: { symbol: "diamond", size: 16, opacity: 1 },
};

function colouring(group) {
  if (group.colour) return { color: group.colour };
  if (group.kind === "beyond") return { color: "$faint" };
  const values = trials.metrics[chosen.colour];
  const seen = values.filter((value) => value !== null);
  return {
    color: group.members.map((i) => values[i]), colorscale: content.scales.points,
    cmin: Math.min(...seen), cmax: Math.max(...seen),
  };
}

// The scale has a trace of its own, which nothing in the key hides.
function colourBar(place) {
  const seen = (trials.metrics[chosen.colour] ?? []).filter((value) => value !== null);
  if (!seen.length || front.groups.every((group) => group.colour)) return [];
  const isNarrow = place.clientWidth < 640;
  const colorbar = { title: { text: escaped(label(chosen.colour)), side: isNarrow ? "top" : "right" }, thickness: 12,
    ...(isNarrow ? { orientation: "h", y: 1.02, yanchor: "bottom", len: 0.9 } : { len: 0.9 }) };
  return [{ type: "scatter", mode: "markers", x: [null], y: [null], hoverinfo: "skip", showlegend: false, meta: "scale",
    marker: { color: [seen[0]], colorscale: content.scales.points, cmin: Math.min(...seen), cmax: Math.max(...seen),
      showscale: true, colorbar } }];
}

function groupTrace(group) {
  const style = KINDS[group.kind];
  return {
    type: "scatter", mode: "markers", name: escaped(group.name), opacity: style.opacity,
    x: group.members.map((i) => valueOf(chosen.x, i)), y: group.members.map((i) => valueOf(chosen.y, i)),
    customdata: group.members, text: group.members.map(hover), hovertemplate: "%{text}<extra></extra>",
    legendgroup: group.sweep ?? group.name, meta: group.kind,
    marker: { symbol: group.symbol && group.kind !== "beyond" ? group.symbol : style.symbol, size: style.size,
      line: { width: group.kind === "beyond" ? 2 : 1, color: "$ink" }, ...colouring(group) },
  };
}

function ring() {
  const i = chosen.trial;
  const at = i === null ? [[], []] : [[valueOf(chosen.x, i)], [valueOf(chosen.y, i)]];
  return { type: "scatter", mode: "markers", x: at[0], y: at[1], hoverinfo: "skip", showlegend: false, meta: "ring",
    marker: { symbol: "circle-open", size: 22, color: "$accent", line: { width: 3, color: "$accent" } } };
}

builders.front = (place) => {
  const on = (metric) => front.constraints.filter((constraint) => constraint.metric === metric);
  const references = chosen.y === "top1" ? front.references.map(({ top1 }) => top1) : [];
  const xaxis = axisOf(chosen.x, on(chosen.x).map(({ bound }) => bound));
  const yaxis = axisOf(chosen.y, [...on(chosen.y).map(({ bound }) => bound), ...references]);
  const marks = [
    ...on(chosen.x).filter(({ bound }) => xaxis.type !== "log" || bound > 0).map((one) => constraintMarks(one, "x", xaxis)),
    ...on(chosen.y).filter(({ bound }) => yaxis.type !== "log" || bound > 0).map((one) => constraintMarks(one, "y", yaxis)),
    referenceMarks(),
  ];
  const isNarrow = place.clientWidth < 640;
  return {
    data: [...front.groups.map(groupTrace), ...colourBar(place), ring()],
    layout: {
      xaxis: { ...xaxis, uirevision: chosen.x }, yaxis: { ...yaxis, uirevision: chosen.y }, hovermode: "closest",
      legend: { orientation: "h", y: isNarrow ? -0.28 : -0.16, groupclick: "toggleitem" },
      shapes: marks.flatMap(({ shapes }) => shapes), annotations: marks.flatMap(({ annotations }) => annotations),
      margin: { l: 56, r: 16, t: isNarrow ? 76 : 32, b: 60 } },
  };
};

// Details of the selected trial

function definitions(pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) list.append(element("dt", name), element("dd", shown(value)));
  return list;
}

function bitsTable(i) {
  const [group, weights, acts] = trials.bits[i];
  const { network, names, pinned } = trials.layers[group];
  const table = element("table");
  const head = element("tr");
  head.append(...["layer", "weights", "activations"].map((name) => element("th", name, { scope: "col" })));
  table.append(element("caption", `Bits of ${network} by layer${pinned.length ? "; ⚲ pinned" : ""}`), head);
  names.forEach((name, k) => {
    const row = element("tr");
    row.append(element("th", name + (pinned.includes(name) ? " ⚲" : ""), { scope: "row" }),
      element("td", weights[k]), element("td", acts[k]));
    table.append(row);
  });
  const box = element("div", "", { class: "bits", tabindex: "0", role: "region", "aria-label": "Bits by layer" });
  box.append(table);
  return box;
}

function showDetails(i, wasBlocked) {
  const panel = document.getElementById("details");
  const metrics = Object.keys(trials.metrics).filter((name) => valueOf(name, i) !== null);
  panel.replaceChildren(
    element("h3", heading(i)),
    ...(trials.sweep ? [] : [runNote(trials.id[i], wasBlocked)]),
    element("h4", "Settings"), definitions(settingsOf(i)),
    element("h4", "Metrics"), definitions(metrics.map((name) => [label(name), valueOf(name, i)])),
    element("h4", "Policy"), element("code", trials.hash[i], { class: "hash" }),
    trials.bits[i] ? bitsTable(i)
      : element("p", whereBits(i)),
  );
}

const isOnFront = (i) => front.groups.some(({ kind, members }) => (kind === "front" || kind === "knee") && members.includes(i));

function whereBits(i) {
  const folder = trials.sweep ? ` of ${trials.sweep[i]}` : "";
  return `${isOnFront(i) ? "This page does not hold its bits: they are" : "Not on the front; its bits are"} in ` +
    `trials/${trials.id[i]}/policy.json${folder}.`;
}

function choose(i) {
  chosen.trial = i;
  document.getElementById("trial").value = i ?? "";
}

function startTrials() {
  const kinds = [];
  for (const { kind, name, members } of front.groups) {
    for (const i of members) kinds[i] = trials.sweep ? kind : name;
  }
  const options = trials.id.map((_, i) => element("option", i === front.knee ? heading(i) : `${heading(i)}, ${kinds[i]}`, { value: i }));
  const choice = document.getElementById("trial");
  choice.append(...options);
  choice.addEventListener("change", () => {
    choose(choice.value === "" ? null : Number(choice.value));
    if (chosen.trial === null) document.getElementById("details").replaceChildren();
    else showDetails(chosen.trial, false);
    redraw(["front"]);
  });
}

function select(i) {
  choose(i);
  const address = trials.sweep ? "" : runAddress(trials.id[i]);
  const mayOpen = address && document.getElementById("opens")?.checked;
  showDetails(i, mayOpen && !openRun(address));
  redraw(["front"]);
}

function startFront() {
  if (!front) return;
  startTrials();
  const place = document.querySelector('[data-figure="front"]');
  place.addEventListener("first-drawn", () => place.on("plotly_click", ({ points }) => {
    if (Number.isInteger(points[0].customdata)) select(points[0].customdata);
  }));
  for (const name of ["x", "y", "colour"]) {
    document.getElementById(`axis-${name}`)?.addEventListener("change", ({ target }) => {
      chosen[name] = target.value;
      redraw(["front"]);
    });
  }
  for (const button of document.querySelectorAll("button[data-trial]")) {
    button.addEventListener("click", () => {
      choose(trials.id.indexOf(button.dataset.trial));
      showDetails(chosen.trial, false);
      redraw(["front"]);
      document.getElementById("details").scrollIntoView({ block: "nearest" });
    });
  }
  const canOpen = !isBoxed && Object.keys(links.runs).some((trial) => runAddress(trial));
  const opens = document.getElementById("opens");
  if (opens) opens.closest("label").hidden = !canOpen;
}
