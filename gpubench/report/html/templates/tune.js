(() => {  // the chart of a search: its Pareto front
  for (const chart of gpubench.data.tune?.charts ?? []) {
    gpubench.lazy(document.getElementById(`tune-${chart.id}`), (element) =>
      gpubench.embed(element, { ...chart.spec, data: { name: "points", values: chart.points } }));
  }
})();
