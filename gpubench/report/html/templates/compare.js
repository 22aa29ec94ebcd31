(() => {  // the charts of a comparison: every cell's effect, and the pairs behind it
  const { verdict } = gpubench.data;
  if (!verdict) return;
  const FIRST = 40;  // more lines than this are drawn when asked for

  const forest = document.getElementById("forest");
  if (forest) {
    const { points, step } = verdict.forest;
    const draw = (shown) => {
      const spec = structuredClone(verdict.forest.spec), wide = forest.clientWidth > 800;
      for (const y of axes(spec)) y.axis.labelLimit = wide ? 0.42 * forest.clientWidth : 170;
      spec.height = step * (wide ? 1 : 1.4) * shown.length;
      const values = wide ? shown : shown.map((point) => ({ ...point, row: folded(point.row) }));
      return gpubench.embed(forest, { ...spec, data: { name: "points", values } });
    };
    gpubench.lazy(forest, () => {
      const button = document.getElementById("forest-all");
      button.hidden = points.length <= FIRST;
      button.textContent = `Draw all ${points.length} cells (the first ${FIRST} are drawn)`;
      button.addEventListener("click", () => { button.hidden = true; draw(points); });
      return draw(points.slice(0, FIRST));
    });
  }

  gpubench.$("[data-behind]").forEach((element) => {
    const cell = verdict.behind.cells[element.dataset.behind];
    const spec = structuredClone(verdict.behind.spec);
    for (const y of axes(spec)) y.axis = { ...cell.axis, grid: true };
    spec.datasets = { points: cell.points, lines: cell.lines };
    gpubench.lazy(element, () => gpubench.embed(element, spec));
  });

  // in two lines, for a narrow window; nothing is cut off, so that no two become alike
  function folded(text) {
    const at = text.lastIndexOf(" ", 24);
    return text.length > 24 && at > 0 ? `${text.slice(0, at)}\n${text.slice(at + 1)}` : text;
  }

  // every y of a layered specification that has a field: they share one axis
  function axes(spec) {
    const own = spec.encoding?.y;
    return [...(own?.field ? [own] : []), ...(spec.layer ?? []).flatMap(axes)];
  }
})();
