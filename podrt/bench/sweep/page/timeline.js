// What each SM does when, a panel for each role. In one script with page.js, which has `at` and `make`.

function showTimeline(trace) {
  const canvas = at("timeline-canvas");
  const [margin, head, foot] = [54, 18, 22]; // of the canvas, and above each role's panel
  const lane = Math.max(2, Math.min(8, Math.floor(560 / (trace.rows.length * trace.roles.length))));
  const panel = head + lane * trace.rows.length;
  const height = panel * trace.roles.length + foot;
  const first = trace.spans.reduce((least, span) => Math.min(least, span[3]), Infinity);
  const last = trace.spans.reduce((most, span) => Math.max(most, span[3] + span[4]), -Infinity);
  let view = [first, Math.max(last, first + 1e-3)];
  let dragFrom = null, dragTo = null;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const others = ["#8a63d2", "#3fa06a", "#c94f7c", "#7a8894"];
  const colour = (role) => (["prefill", "decode"].includes(trace.roles[role]) ? css(`--${trace.roles[role]}`) : others[role % others.length]);
  const width = () => canvas.clientWidth;
  const xOf = (us) => margin + ((us - view[0]) / (view[1] - view[0])) * (width() - margin);
  const usOf = (x) => view[0] + ((x - margin) / (width() - margin)) * (view[1] - view[0]);

  function paint() {
    const scale = window.devicePixelRatio || 1;
    canvas.width = width() * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const colours = trace.roles.map((_, role) => colour(role));
    for (const [row, role, , begin, us] of trace.spans) {
      if (begin > view[1] || begin + us < view[0]) continue;
      const [from, to] = [Math.max(xOf(begin), margin), Math.min(xOf(begin + us), width())];
      pen.fillStyle = colours[role];
      const gap = to - from > 3 ? 0.7 : 0; // between the spans of an SM
      pen.fillRect(from, role * panel + head + row * lane, Math.max(to - from - gap, 0.5), lane);
    }
    pen.fillStyle = css("--front");
    pen.font = "11px system-ui, sans-serif";
    const step = 8 * Math.ceil(14 / (8 * lane));
    trace.roles.forEach((name, role) => {
      pen.textAlign = "left";
      pen.fillText(name, margin, role * panel + 13);
      pen.textAlign = "right";
      trace.rows.forEach((sm, row) => {
        if (row % step === 0) pen.fillText(`SM ${sm}`, margin - 4, role * panel + head + row * lane + 8);
      });
    });
    pen.textAlign = "center";
    for (let tick = 0; tick <= 8; tick++) {
      const us = view[0] + ((view[1] - view[0]) * tick) / 8;
      const x = Math.min(Math.max(xOf(us), margin + 14), width() - 24);
      pen.fillText(`${us.toFixed(view[1] - view[0] < 20 ? 2 : 0)} us`, x, height - 8);
    }
    if (dragFrom !== null) {
      pen.fillStyle = "#8888";
      pen.fillRect(Math.min(dragFrom, dragTo), 0, Math.abs(dragTo - dragFrom), height - foot);
    }
    at("zoom-range").textContent = `${view[0].toFixed(2)} to ${view[1].toFixed(2)} us`;
  }

  function look(from, to) {
    const length = Math.min(Math.max(to - from, 0.05), last - first);
    const begin = Math.min(Math.max((from + to - length) / 2, first), last - length);
    view = [begin, begin + length];
    paint();
  }
  const zoom = (factor, middle = (view[0] + view[1]) / 2) =>
    look(middle - (middle - view[0]) * factor, middle + (view[1] - middle) * factor);
  const pan = (share) => { const by = share * (view[1] - view[0]); look(view[0] + by, view[1] + by); };

  at("zoom-in").addEventListener("click", () => zoom(0.5));
  at("zoom-out").addEventListener("click", () => zoom(2));
  at("zoom-all").addEventListener("click", () => look(first, last));
  canvas.addEventListener("dblclick", () => look(first, last));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, usOf(event.offsetX));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const action = { "+": () => zoom(0.5), "-": () => zoom(2), 0: () => look(first, last), ArrowLeft: () => pan(-0.25), ArrowRight: () => pan(0.25) }[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  canvas.addEventListener("pointerdown", (event) => { dragFrom = dragTo = event.offsetX; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (dragFrom !== null) { dragTo = event.offsetX; paint(); }
    const [us, role] = [usOf(event.offsetX), Math.floor(event.offsetY / panel)];
    const row = Math.floor(((event.offsetY % panel) - head) / lane);
    const span = trace.spans.find((each) => each[0] === row && each[1] === role && us >= each[3] && us <= each[3] + each[4]);
    at("span").textContent = span
      ? `SM ${trace.rows[row]}, ${trace.roles[role]}${trace.names[span[2]] === trace.roles[role] ? "" : `, ${trace.names[span[2]]}`}: ${span[3].toFixed(2)} to ${(span[3] + span[4]).toFixed(2)} us`
      : "Drag to zoom into a part, double click for the whole; Ctrl and the wheel zoom too.";
  });
  canvas.addEventListener("pointerup", () => {
    const [from, to] = [Math.min(dragFrom, dragTo), Math.max(dragFrom, dragTo)];
    dragFrom = null;
    if (to - from > 4) look(usOf(from), usOf(to));
    else paint();
  });
  canvas.addEventListener("pointercancel", () => { dragFrom = null; paint(); });
  window.addEventListener("resize", paint);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { keys(); paint(); });

  function keys() {
    at("roles").replaceChildren(...trace.roles.flatMap((name, role) => {
      const key = make("span", { className: "key" });
      key.style.background = colour(role);
      return [key, name];
    }));
  }
  at("timeline-view").hidden = false;
  canvas.style.height = `${height}px`;
  at("timeline-note").textContent = `${trace.source}${trace.gpu ? `, ${trace.gpu}` : ""}${trace.title ? `: ${trace.title}` : ""}: ${trace.spans.length} spans on ${trace.rows.length} SMs`;
  keys();
  paint();
}
