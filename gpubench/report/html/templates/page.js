"use strict";
const gpubench = (() => {
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

  // ---- one filter for all rows and charts, and which columns are shown: both are in the address ---
  const address = new URLSearchParams(location.search), watching = [];
  const words = () => (address.get("filter") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (text) => words().every((word) => text.toLowerCase().includes(word));

  function remember(name, value) {
    value === "" ? address.delete(name) : address.set(name, value);
    const query = address.size ? `?${address}` : location.pathname;
    try { history.replaceState(null, "", query + location.hash); } catch { }  // a sandboxed frame
  }

  const rows = $(".filtered, .item").map((row) => [row, row.textContent]);
  function filter() {
    for (const [row, text] of rows) row.hidden = !matches(text);
    for (const section of $("section:has(.shown)")) {
      const all = $(".filtered, .item", section), shown = all.filter((row) => !row.hidden).length;
      const named = `${all.length} row${all.length === 1 ? "" : "s"}`;
      $(".shown", section)[0].textContent = shown < all.length ? `${shown} of ${named}` : named;
      if (words().length && shown) $("details.fold", section).forEach((fold) => { fold.open = true; });
    }
    watching.forEach((redraw) => redraw());
  }
  function filterBy(text) {
    $("#filter").forEach((input) => { input.value = text; });
    remember("filter", text);
    filter();
  }
  $("#filter").forEach((input) => {
    input.value = address.get("filter") ?? "";
    input.addEventListener("input", () => { remember("filter", input.value); filter(); });
  });

  const boxes = $("[data-group]");
  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.name).join(",");
  const first = chosen();
  if (address.has("show")) boxes.forEach((box) => { box.checked = address.get("show").split(",").includes(box.name); });
  boxes.forEach((box) => box.addEventListener("change", () => remember("show", chosen() === first ? "" : chosen())));

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

  // on demand: a chart for each of hundreds of cells, which nobody prints
  const folded = () => $("details:not([open], .ondemand)");
  let opened = [];
  addEventListener("beforeprint", () => { opened = folded(); opened.forEach((d) => { d.open = true; }); });
  addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));

  // a link to what lies in a closed fold opens it
  function reveal() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let fold = target && target.closest("details"); fold; fold = fold.parentElement.closest("details")) {
      fold.open = true;
    }
    if (target && target.tagName === "DETAILS") target.open = true;
    if (target) target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);

  // ---- charts: each is drawn when it is first to be seen ------------------------------------
  const source = document.getElementById("data");
  const data = source ? JSON.parse(source.textContent) : {};
  let waiting = [];
  const started = [];

  function lazy(element, draw) {
    waiting.push([element, draw]);
  }

  function flush() {
    const seen = ([element]) => !element.closest("details:not([open])");
    const now = waiting.filter(seen);
    waiting = waiting.filter((item) => !seen(item));
    now.forEach(([element, draw]) => { element.dataset.drawn = "1"; started.push(draw(element)); });
  }
  document.addEventListener("toggle", flush, true);

  async function embed(element, spec) {
    const { view } = await vegaEmbed(element, spec, { actions: false, renderer: "svg", defaultStyle: false,
      logLevel: 1,  // an empty selection is no news: errors only
      tooltip: { disableDefaultStyle: true } });
    return view;
  }

  Object.defineProperty(window, "ready", { get: () => Promise.all(started).then(() => started.length) });
  addEventListener("DOMContentLoaded", () => { reveal(); if (words().length) filter(); flush(); });
  return { $, data, lazy, embed, matches, filterBy, watching, words };
})();
