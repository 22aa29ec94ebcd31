"use strict";
(() => {
  const $ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // ---- tables: sort by header button, filter by words -------------------------------------
  const collator = new Intl.Collator("en", { numeric: true });

  function sortKey(row, column) {
    const cell = row.cells[column];
    return cell.dataset.v ?? cell.textContent.trim();
  }

  function compare(a, b) {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y;
  }

  function sortBy(header) {
    const table = header.closest("table"), column = header.cellIndex;
    const up = header.getAttribute("aria-sort") !== "ascending";
    $("th", table).forEach((th) => th.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [sortKey(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");  // no value: last, either way
      return up ? compare(a, b) : compare(b, a);
    });
    body.append(...rows.map(([, row]) => row));
  }

  $("th button").forEach((button) =>
    button.addEventListener("click", () => sortBy(button.closest("th"))));

  $(".filter input").forEach((input) => {
    const section = input.closest("section"), rows = $("tbody tr", section);
    const texts = rows.map((row) => row.textContent.toLowerCase());
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        shown += !row.hidden;
      });
      const all = rows.length;
      $(".shown", section)[0].textContent = shown < all ? `${shown} of ${all} rows` : `${all} rows`;
      const fold = $("details", section)[0];
      if (fold && words.length) fold.open = true;
    });
  });

  // ---- copy buttons -----------------------------------------------------------------------
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // no clipboard permission: the old way
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button || button.dataset.busy) return;
    const before = button.textContent;
    await copy(button.dataset.copy);
    button.dataset.busy = "1";
    button.textContent = "copied";
    setTimeout(() => { button.textContent = before; delete button.dataset.busy; }, 1200);
  });

  const folded = () => $("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => { opened = folded(); opened.forEach((d) => { d.open = true; }); });
  addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));

  // ---- charts -----------------------------------------------------------------------------
  const source = document.getElementById("data");
  if (!source) return;
  const { series, groups, charts } = JSON.parse(source.textContent);
  const hidden = new Set(), views = new Map();
  const state = { group: 0, replicas: null, what: null };

  const options = (field) => {
    const seen = new Map();
    charts.filter((c) => c.by === field).forEach((c) => c.points.forEach((p) => {
      if (p.group === state.group) seen.set(p[field], p.rank ?? [p[field]]);
    }));
    const order = ([, a], [, b]) => a.reduce((d, v, i) => d || v - b[i], 0);
    return [...seen].sort(order).map(([value]) => value);
  };

  function choice(name, values, label, pick) {
    if (values.length < 2) return;
    const box = document.createElement("label"), select = document.createElement("select");
    values.forEach((value, i) => select.append(new Option(label(value), i)));
    select.value = values.indexOf(state[name]);
    select.dataset.name = name;
    select.addEventListener("change", () => pick(values[select.value]));
    box.append({ group: "Workload ", replicas: "Replicas ", what: "Scaling " }[name], select);
    document.getElementById("controls").append(box);
  }

  function controls() {
    document.getElementById("controls").replaceChildren();
    for (const field of ["replicas", "what"]) {
      const values = options(field);
      if (!values.includes(state[field])) state[field] = values[0] ?? null;
    }
    choice("group", groups.map((_, i) => i), (i) => groups[i], (i) => {
      state.group = i;
      controls();
      draw();
    });
    for (const field of ["replicas", "what"]) {
      choice(field, options(field), String, (value) => { state[field] = value; draw(); });
    }
  }

  const PATHS = { "circle": "M7 2a5 5 0 1 0 .01 0z", "square": "M2.5 2.5h9v9h-9z", "triangle-up": "M7 2l5 9.5H2z",
    "diamond": "M7 1l5 6-5 6-5-6z", "triangle-down": "M7 12L2 2.5h10z", "triangle-right": "M12 7L2.5 2v10z" };

  function legend() {
    const box = document.getElementById("series");
    series.forEach((look) => {
      const button = document.createElement("button");
      button.type = "button";
      button.innerHTML = '<svg width="14" height="14" aria-hidden="true"><path/></svg>';
      const path = button.querySelector("path");
      path.setAttribute("d", PATHS[look.shape]);
      path.style.fill = look.colour;
      button.append(look.name);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        hidden.has(look.name) ? hidden.delete(look.name) : hidden.add(look.name);
        button.setAttribute("aria-pressed", String(!hidden.has(look.name)));
        draw();
      });
      box.append(button);
    });
  }

  const chosen = (chart) => chart.points.filter((p) =>
    p.group === state.group && p[chart.by] === state[chart.by] && !hidden.has(p.series));

  function draw() {
    for (const chart of charts) {
      const many = new Set(chart.points.map((p) => p[chart.by])).size > 1;
      const value = state[chart.by];
      const text = chart.by === "what" ? value : `${value} replica${value === 1 ? "" : "s"}`;
      document.getElementById(`about-${chart.id}`).textContent = many && value !== null ? `(${text})` : "";
      const view = views.get(chart.id);
      if (view) view.data("points", chosen(chart)).resize().runAsync();
    }
  }

  legend();
  controls();
  draw();
  window.ready = Promise.all(charts.map(async (chart) => {
    const at = `#chart-${chart.id}`;
    const spec = { ...chart.spec, data: { name: "points", values: chosen(chart) } };
    const { view } = await vegaEmbed(at, spec, { actions: false, renderer: "svg", defaultStyle: false,
      logLevel: 1,  // an empty selection is no news: errors only
      tooltip: { disableDefaultStyle: true } });
    views.set(chart.id, view);
  })).then(() => { document.body.dataset.ready = "1"; });
})();
