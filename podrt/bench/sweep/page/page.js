"use strict";
// The data is only ever set as text, never as markup: names may hold anything.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
let gpu = data.gpus[0];
let chosen = null; // a record

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const number = (digits) => (value) => (value === null || value === undefined ? "-" : value.toFixed(digits));
const text = (value) => (value === null || value === undefined ? "" : String(value));
const percent = (value) => (value === null ? "-" : `${(100 * value).toFixed(0)} %`);
const values = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));

// ---- tables: a column is [heading, value of a row, text of a value or null for text as it is]

class SortedTable {
  constructor(table, columns, onRow) {
    Object.assign(this, { table, columns, onRow, sortedBy: null, isDescending: false, rows: [] });
    this.headings = columns.map(([heading, , format], index) => {
      const button = make("button", { type: "button" }, heading);
      button.addEventListener("click", () => this.sort(index));
      return make("th", { scope: "col", className: format ? "number" : "" }, button);
    });
    this.body = make("tbody");
    table.replaceChildren(make("thead", {}, make("tr", {}, ...this.headings)), this.body);
  }

  sort(index) {
    this.isDescending = this.sortedBy === index && !this.isDescending;
    this.sortedBy = index;
    this.headings.forEach((heading, place) => {
      if (place === index) heading.setAttribute("aria-sort", this.isDescending ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    this.show(this.rows);
  }

  show(rows) {
    this.rows = rows;
    const ordered = [...rows];
    if (this.sortedBy !== null) {
      const value = this.columns[this.sortedBy][1];
      const sign = this.isDescending ? -1 : 1;
      ordered.sort((a, b) => this.compare(value(a), value(b), sign));
    }
    this.body.replaceChildren(...ordered.map((row) => this.line(row)));
  }

  compare(a, b, sign) {
    const missing = [a, b].map((value) => value === null || value === undefined);
    if (missing[0] || missing[1]) return missing[0] - missing[1]; // last, whichever way
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), "en", { numeric: true });
  }

  mark() {
    for (const line of this.body.rows) line.classList.toggle("chosen", line.record === chosen);
  }

  line(row) {
    const cells = this.columns.map(([, value, format]) =>
      make("td", { className: format ? "number" : "" }, format ? format(value(row)) : text(value(row))));
    const line = make("tr", { tabIndex: 0, className: row.status && row.status !== "ok" ? row.status : "" }, ...cells);
    line.record = row;
    line.classList.toggle("chosen", row === chosen);
    line.addEventListener("click", () => this.onRow(row));
    line.addEventListener("keydown", (event) => { if (event.key === "Enter") this.onRow(row); });
    return line;
  }
}

const summaryTable = new SortedTable(at("summary"), [
  ["variant", (row) => row.name, null],
  ["batches", (row) => row.cases, number(0)],
  ["time / auto", (row) => row.geomean, number(3)],
  ["wins", (row) => row.wins, number(0)],
  ["worst / fastest", (row) => row.worst, number(2)],
  ["not right", (row) => row.wrong, number(0)],
], (row) => { at("filter").value = `"${row.name}"`; filter(); });

const resultTable = new SortedTable(at("results"), [
  ["variant", (row) => row.variant, null],
  ["batch", (row) => row.case, null],
  ["status", (row) => row.status, null],
  ["us", (row) => row.time_us, number(1)],
  ["/ auto", (row) => row.relative, number(3)],
  ["/ fastest", (row) => row.regret, number(3)],
  ["overlap", (row) => row.overlap, number(2)],
  ["predicted us", (row) => row.predicted_us, number(1)],
  ["error", (row) => row.max_rel_err, (value) => (value === null ? "-" : value.toExponential(1))],
], choose);

function filter() {
  const asked = at("filter").value.trim();
  const exact = /^"(.*)"$/.exec(asked); // a whole name, as a click in the first table asks for it
  const words = asked.toLowerCase().split(/\s+/);
  const has = (row) => {
    if (exact) return row.variant === exact[1];
    const names = `${row.variant} ${row.case} ${row.kernels.join(" ")}`.toLowerCase();
    return words.every((word) => names.includes(word));
  };
  const rows = gpu.results.filter((row) => has(row) &&
    (!at("case").value || row.case === at("case").value) &&
    (!at("status").value || row.status === at("status").value));
  const shown = new Set(rows.map((row) => row.variant));
  resultTable.show(rows);
  summaryTable.show(gpu.variants.filter((row) => shown.has(row.name)));
  at("count").textContent = `${rows.length} of ${gpu.results.length} records`;
}

function options(select, first, names) {
  select.replaceChildren(make("option", { value: "" }, first),
    ...[...new Set(names)].map((name) => make("option", { value: name }, name)));
}

// ---- what was chosen: its record and its batch's plan

function pairs(entries) {
  return make("dl", {}, ...entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

const recordOf = (variant, name) => gpu.results.find((row) => row.variant === variant && row.case === name);

function choose(row) {
  chosen = row;
  const body = at("detail-body");
  const policy = Object.entries(row.policy).map(([field, value]) => `${field}=${pythonic(value)}`).join(", ");
  body.replaceChildren(
    make("h2", {}, row.variant),
    pairs([
      ["batch", row.case],
      ["lengths", row.lengths],
      ["layer", Object.entries(row.layer).map(([field, value]) => `${field} ${value}`).join(", ")],
      ["policy", `podrt.Policy(${policy})`],
      ["side", row.side],
      ["status", row.status + (row.reason ? `: ${row.reason}` : "")],
      ["time", row.time_us === null ? "-" : `${row.time_us.toFixed(1)} us` +
        (row.quartiles_us ? `, quartiles ${row.quartiles_us.map(number(1)).join(" to ")}` : "")],
      ["time / auto", number(3)(row.relative)],
      ["time / fastest", number(3)(row.regret) + (row.is_best ? " (the fastest)" : "")],
      ["overlap", number(2)(row.overlap)],
      ["predicted", row.predicted_us === null ? "-" : `${row.predicted_us.toFixed(1)} us`],
      ["samples", row.samples_us ? row.samples_us.map(number(1)).join(" ") : "-"],
      ["error", row.max_rel_err === null ? "-" : `${row.max_rel_err.toExponential(2)} of ${text(row.tolerance)}, ${text(row.worst)}`],
      ["SMs", Object.entries(row.shares).map(([field, value]) => `${field} ${value}`).join(", ")],
      ["kernels", make("div", {}, ...row.kernels.map(kernelLink))],
    ]),
    make("h3", {}, "Plan of this batch, as podrt chooses by itself"),
    ...plan(gpu.plans[row.plan]),
  );
  at("detail").hidden = false;
  at("detail").scrollTop = 0;
  resultTable.mark();
}

function pythonic(value) {
  if (Array.isArray(value)) return `(${value.map(pythonic).join(", ")})`;
  if (typeof value === "boolean") return value ? "True" : "False";
  return value === null ? "None" : JSON.stringify(value);
}

function kernelLink(name) {
  if (!data.kernels.some((kernel) => kernel.name === name && kernel.source)) return make("div", {}, name);
  const link = make("a", { href: "#code" }, name);
  link.addEventListener("click", () => { at("kernel").value = name; at("detail").hidden = true; showCode(); });
  return make("div", {}, link);
}

function plan(explained) {
  if (explained.why_not) return [make("p", { className: "note" }, explained.why_not)];
  const table = make("table", { id: "plan" },
    make("thead", {}, make("tr", {}, ...["candidate", "launches", "predicted us", "waits for"].map((name) => make("th", {}, name)))),
    make("tbody", {}, ...explained.candidates.map((each) => make("tr", { className: each.is_chosen ? "chosen" : "" },
      make("td", {}, `${each.is_chosen ? "● " : ""}${each.name}`), make("td", { className: "number" }, text(each.launches)),
      make("td", { className: "number" }, number(1)(each.predicted_us)), make("td", {}, text(each.limit))))));
  const lines = [`${explained.batch}, on ${explained.gpu}`, `the ${explained.chosen_by}: ${explained.why}`, explained.note,
    `By podrt ${data.podrt}, which wrote this page; ● is what it runs.`];
  return [table, ...lines.map((line) => make("p", {}, line))];
}

// ---- heat maps

function showMap(map) {
  const known = map.cells.flat().filter(Boolean).map((cell) => cell.value);
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const warmth = (value) => {
    const share = most > least ? (value - least) / (most - least) : 0;
    return Math.round(70 * (map.less_is_better ? share : 1 - share));
  };
  const cell = (each) => {
    if (!each) return make("td");
    const label = each.label + (each.is_auto ? " ●" : "");
    const button = make("button", { type: "button", className: each.is_best ? "best" : "", title: `${each.variant}, ${each.case}` }, label);
    button.style.background = `color-mix(in srgb, var(--heat) ${warmth(each.value)}%, var(--back))`;
    button.addEventListener("click", () => choose(recordOf(each.variant, each.case)));
    return make("td", {}, button);
  };
  const head = make("tr", {}, make("th", {}, `${map.y_name} \\ ${map.x_name}`), ...map.xs.map((x) => make("th", { scope: "col" }, x)));
  const lines = map.cells.map((line, y) => make("tr", {}, make("th", { scope: "row" }, map.ys[y]), ...line.map(cell)));
  return make("div", { className: "map" }, make("h3", {}, map.title), make("p", {}, map.value_name),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)),
    make("ul", {}, ...map.notes.map((note) => make("li", {}, note))));
}

// ---- roofline

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, attributes, content = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (content !== null) element.textContent = content;
  return element;
}

function showRoofline() {
  if (!gpu.roofline.length) {
    at("roofline-plot").replaceChildren(make("p", {}, gpu.no_roofline || "Nothing was measured."));
    return;
  }
  const [left, top, side] = [56, 12, 480];
  const limit = Math.max(1.05, ...gpu.roofline.map((point) => Math.max(point.memory_share, point.matmul_share) * 1.05));
  const x = (share) => left + (side * share) / limit;
  const y = (share) => top + side - (side * share) / limit;
  const svg = draw("svg", { viewBox: `0 0 640 ${side + 60}`, role: "img", "aria-label": "Roofline" });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const kind = share === 1 || share === 0 ? "axis" : "grid";
    svg.append(draw("line", { class: kind, x1: x(share), x2: x(share), y1: y(0), y2: y(limit) }),
      draw("line", { class: kind, x1: x(0), x2: x(limit), y1: y(share), y2: y(share) }),
      draw("text", { x: x(share), y: y(0) + 18, "text-anchor": "middle" }, percent(share)),
      draw("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, percent(share)));
  }
  svg.append(draw("text", { x: x(limit / 2), y: side + 52, "text-anchor": "middle" }, "of the speed that reading reaches"),
    draw("text", { x: 12, y: y(limit / 2), "text-anchor": "middle", transform: `rotate(-90 12 ${y(limit / 2)})` }, "of the speed that matrix products reach"));
  const best = new Set(gpu.results.filter((row) => row.is_best).map((row) => JSON.stringify([row.variant, row.case])));
  const rank = (point) => ["auto", "serial"].includes(point.policy) + best.has(JSON.stringify([point.policy, point.case]));
  for (const point of [...gpu.roofline].sort((a, b) => rank(a) - rank(b))) {
    const isBest = best.has(JSON.stringify([point.policy, point.case]));
    const usual = ["auto", "serial"].includes(point.policy) ? point.policy : "";
    const circle = draw("circle", { class: `${usual} ${isBest ? "best" : ""}`, r: rank(point) ? 6 : 4, cx: x(point.memory_share), cy: y(point.matmul_share) });
    circle.append(draw("title", {}, `${point.policy}, ${point.case}: ${point.time_us.toFixed(1)} us, memory ${percent(point.memory_share)}, ` +
      `matmul ${percent(point.matmul_share)}, overlap ${number(2)(point.overlap)}`));
    circle.addEventListener("click", () => choose(recordOf(point.policy, point.case)));
    svg.append(circle);
  }
  ["auto", "serial", "best", ""].forEach((kind, index) => svg.append(
    draw("circle", { class: kind, r: 6, cx: 560, cy: 30 + 22 * index }),
    draw("text", { x: 574, y: 34 + 22 * index }, { best: "fastest", "": "others" }[kind] ?? kind)));
  at("roofline-plot").replaceChildren(svg);
}

// ---- code

async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function showCode() {
  const kernel = data.kernels.find((each) => each.name === at("kernel").value);
  const kind = at("text").value;
  const held = kernel ? kernel[kind] : null;
  at("code-note").textContent = !kernel ? "No kernel won a batch." : held ? "" : kernel.why_not || "Left out, to keep this file small.";
  at("code-text").hidden = !held;
  if (!held) return;
  const lines = (await unpacked(held)).split("\n");
  const words = at("find").value.toLowerCase();
  const wide = String(lines.length).length;
  const numbered = lines.map((line, index) => `${String(index + 1).padStart(wide)}  ${line}`);
  const shown = words ? numbered.filter((line) => line.toLowerCase().includes(words)) : numbered;
  if (at("kernel").value === kernel.name && at("text").value === kind) at("code-text").textContent = shown.join("\n");
  at("code-note").textContent = `${shown.length} of ${lines.length} lines, by podrt ${data.podrt}`;
}

// ---- the whole

function showGpu() {
  const used = new Set(gpu.results.map((row) => row.environment));
  const entries = Object.entries(data.environments).filter(([id]) => used.has(id))
    .flatMap(([, environment]) => Object.entries(environment)).map(([name, value]) => [name, values(value)]);
  at("environment-list").replaceChildren(...pairs(entries).childNodes);
  options(at("case"), "all batches", gpu.results.map((row) => row.case));
  options(at("status"), "any status", gpu.results.map((row) => row.status));
  filter();
  at("map-list").replaceChildren(...gpu.maps.map(showMap));
  if (!gpu.maps.length) at("map-list").replaceChildren(make("p", {}, "No axis was measured at two values."));
  showRoofline();
}

at("notes").replaceChildren(...data.notes.map((note) => make("li", { className: "note" }, note)));
at("gpu").replaceChildren(...data.gpus.map((each, index) => make("option", { value: String(index) }, each.gpu)));
at("gpu-choice").hidden = data.gpus.length < 2;
at("gpu").addEventListener("change", () => { gpu = data.gpus[Number(at("gpu").value)]; chosen = null; at("detail").hidden = true; showGpu(); });
at("filter").addEventListener("input", filter);
at("case").addEventListener("change", filter);
at("status").addEventListener("change", filter);
function close() { chosen = null; at("detail").hidden = true; resultTable.mark(); }
at("close").addEventListener("click", close);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !at("detail").hidden) close(); });
at("skipped").hidden = !data.skips.length;
at("skipped").firstElementChild.textContent = `${data.skips.length} skipped, and why`;
at("skipped").lastElementChild.replaceChildren(...data.skips.map((skip) =>
  make("li", {}, `${skip.variant}${skip.case ? ` on ${skip.case}` : ""}: ${skip.reason}`)));
at("kernel").replaceChildren(...data.kernels.map((kernel) => make("option", { value: kernel.name }, kernel.name)));
for (const id of ["kernel", "text"]) at(id).addEventListener("change", showCode);
at("find").addEventListener("input", showCode);
showGpu();
showCode();
if (data.timeline) showTimeline(data.timeline);
else at("timeline-note").textContent = "No timeline: podrt explore trace --chrome writes one, and podrt explore report --timeline takes it in.";
