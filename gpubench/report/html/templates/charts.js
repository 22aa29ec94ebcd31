(() => {  // the charts of a run: throughput, trade-off, scaling
  if (!gpubench.data.charts?.length) return;
  const { series, groups, charts, start } = gpubench.data;
  const views = new Map();
  const state = { group: charts.some((c) => c.points.some((p) => p.group === start.group)) ? start.group
    : charts[0].points[0].group, replicas: start.replicas ?? null, what: null };

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
    const drawn = groups.map((_, i) => i).filter((i) => charts.some((c) => c.points.some((p) => p.group === i)));
    choice("group", drawn, (i) => groups[i], (i) => {
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
      button.addEventListener("click", () =>
        gpubench.filterBy(gpubench.words().join(" ") === look.name.toLowerCase() ? "" : look.name));
      box.append(button);
    });
  }

  const chosen = (chart) => chart.points.filter((p) =>
    p.group === state.group && p[chart.by] === state[chart.by]
    && gpubench.matches(`${p.series} ${p.tip.cell}`));

  function draw() {
    const seen = new Set(charts.flatMap((c) => c.points.filter((p) => p.group === state.group).map((p) => p.series)));
    gpubench.$("#series button").forEach((button, i) => { button.hidden = !seen.has(series[i].name); });
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
  gpubench.watching.push(draw);
  for (const chart of charts) {
    gpubench.lazy(document.getElementById(`chart-${chart.id}`), async (element) => {
      const spec = { ...chart.spec, data: { name: "points", values: chosen(chart) } };
      views.set(chart.id, await gpubench.embed(element, spec));
    });
  }
})();
