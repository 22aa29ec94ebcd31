(() => {  // samples over time, the turns one after another, with the GPU's clock and temperature
  const { samples } = gpubench.data;
  if (!samples) return;
  const NAMES = 8;  // so many turns have their name written, at most
  const COLOURS = 8;

  const times = (list, step) => list.map((value) => value * step);

  const named = (cell, what, index) =>
    what === "replica" && cell.places[index] ? `${index} (${cell.places[index]})` : index;

  // rows of one chart from [turn, index, x, y] of each line
  function rows(cell, lines, what, unit, dy) {
    return lines.flatMap(([turn, index, xs, ys]) => {
      const y = times(ys, dy);
      return times(xs, cell.dx).map((x, i) => ({
        x, y: y[i], colour: index % COLOURS, part: `${turn}/${index}`,
        tip: { "": cell.turns[turn][1], [what]: named(cell, what, index), "s of sampling": x.toFixed(3),
          value: `${Number(y[i].toPrecision(5))} ${unit}` },
      }));
    });
  }

  function chart(box, cell, base, title, points, last) {
    const spec = structuredClone(base), [, , main] = spec.layer, { x, y } = main.encoding;
    const every = Math.ceil(cell.turns.length / NAMES);
    const turns = cell.turns.map(([begin, name], i) => ({
      begin: begin * cell.dx, name: base === samples.spec && i % every === 0 ? name : "",
      room: ((cell.turns[i + every]?.[0] ?? samples.steps) - begin) / samples.steps,  // till the next name
    }));
    y.title = title;
    if (cell.log && base === samples.spec) {
      y.title += ", log scale";
      y.scale = { ...y.scale, type: "log" };
    }
    x.scale.domain = [0, samples.steps * cell.dx];
    x.title = last ? "s of sampling, turn after turn" : null;
    if (!last) x.axis = { ...x.axis, labels: false, ticks: false };
    spec.datasets = { points, turns };
    const element = document.createElement("div");
    element.className = "chart";
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", `${title} over time, ${cell.label}`);
    box.append(element);
    return gpubench.embed(element, spec);
  }

  // which colour is which, where there are several
  function legend(cell, gauges) {
    const lines = [...cell.samples, ...gauges.flatMap(([name]) => cell.gauges[name])];
    const seen = [...new Set(lines.map(([, index]) => index))].sort((a, b) => a - b);
    const list = document.createElement("ul");
    list.className = "swatches";
    seen.forEach((index) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `var(--s${index % COLOURS})`;
      item.append(swatch, `${gauges.length ? "replica or GPU" : "replica"} ${named(cell, "replica", index)}`);
      list.append(item);
    });
    return seen.length > 1 ? [list] : [];
  }

  gpubench.$("[data-samples]").forEach((box) => gpubench.lazy(box, async () => {
    const cell = samples.cells[box.dataset.samples];
    const gauges = samples.gauges.filter(([name]) => cell.gauges[name].length);
    box.append(...legend(cell, gauges));
    const drawn = [chart(box, cell, samples.spec, `one batch (${cell.unit})`,
      rows(cell, cell.samples, "replica", cell.unit, cell.dy), !gauges.length)];
    gauges.forEach(([name, title, unit], i) => drawn.push(chart(box, cell, samples.gauge, title,
      rows(cell, cell.gauges[name], "GPU", unit, 1), i === gauges.length - 1)));
    await Promise.all(drawn);
  }));
})();
