gpubench.$("[data-trend]").forEach((box) => {  // a chart for each cell, drawn when it is first seen
  const spec = gpubench.data.trends[box.dataset.trend];
  gpubench.lazy(box, (element) => gpubench.embed(element, spec));
});
