"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const config = JSON.parse(document.getElementById("chart-config").textContent);
  // What a row does not know at its end is left out of it.
  const asObject = (row) => Object.fromEntries(data.columns.map((name, place) => [name, row[place] ?? null]));
  const rowsOf = (cell) => data.cells[cell].rows.map(asObject);
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  // What is looked for in a row; not its reason, which names other candidates.
  const words = (row) => [row.accelerator, row.params, row.verdict, row.targets, row.worst_prompt].join(" ").toLowerCase();

  // Tables: sorted by their heads, filtered by the fields above them.
  for (const table of document.querySelectorAll("table.candidates")) {
    const section = table.closest("section");
    const body = table.tBodies[0];
    const rows = rowsOf(section.dataset.cell);
    const lines = Array.from(body.rows, (line, place) => ({ line, row: rows[place], text: words(rows[place]) }));
    const heads = Array.from(table.tHead.rows[0].cells).filter((head) => head.dataset.column);
    for (const head of heads) {
      const button = element("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const column = head.dataset.column;
        lines.sort((one, other) => compare(one.row[column], other.row[column], up ? 1 : -1));
        body.append(...lines.map((each) => each.line));
      });
    }
    const filters = section.querySelector(".filters");
    const [find, accelerator, verdict, least] = ["find", "accelerator", "verdict", "least"].map((name) => filters.querySelector("." + name));
    const narrow = () => {
      const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const { line, row, text } of lines) {
        const fits =
          wanted.every((word) => text.includes(word)) &&
          (!accelerator.value || row.accelerator === accelerator.value) &&
          (!verdict.value || row.verdict === verdict.value) &&
          (!least.value || row.speedup >= Number(least.value));
        line.hidden = !fits;
        shown += fits;
      }
      filters.querySelector("output").textContent = shown + " of " + lines.length + " candidates";
    };
    filters.addEventListener("input", narrow);
  }
  // What is not known comes last in either direction.
  function compare(one, other, sign) {
    const missing = (value) => value === null || value === "";
    if (missing(one) || missing(other)) return missing(one) - missing(other);
    const order = typeof one === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
    return sign * order;
  }

  // Pictures: a slider that lays the accelerated one over the other.
  for (const pair of document.querySelectorAll(".pair")) {
    const [under, over] = [".baseline img", ".candidate img"].map((which) => pair.querySelector(which).cloneNode());
    over.alt = "";
    const box = element("div", undefined, "blink");
    const stack = element("div", undefined, "stack");
    const label = element("label", "unaccelerated ⟷ accelerated");
    const slider = element("input");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 5, value: 0 });
    over.style.opacity = 0;
    slider.addEventListener("input", () => {
      over.style.opacity = slider.value / 100;
    });
    stack.append(under, over);
    label.append(slider);
    box.append(stack, label);
    pair.append(box);
  }

  // Boxes that are narrower than what they hold say so.
  for (const box of document.querySelectorAll(".scroll")) {
    const hint = element("p", "Scroll sideways for the rest →", "hint");
    box.before(hint);
    const look = () => (hint.hidden = box.scrollWidth <= box.clientWidth + 1);
    new ResizeObserver(look).observe(box);
    box.addEventListener("toggle", look, true);
    look();
  }

  // Charts: drawn when they come into sight, in place of their pictures.
  const tip = document.getElementById("tip");
  function tooltip(_, event, item, value) {
    if (!value) {
      tip.hidden = true;
      return;
    }
    const list = element("dl");
    for (const [name, text] of Object.entries(value)) {
      if (text !== "" && text !== "null" && text !== "undefined") list.append(element("dt", name), element("dd", String(text).replace(/,(?=\S)/g, ", ")));
    }
    tip.replaceChildren(list);
    const shown = item && item.datum && picturesOf(event.target.closest("section"), item.datum);
    if (shown) {
      const thumbs = element("div", undefined, "thumbs");
      thumbs.append(...Array.from(shown.querySelector(".pair").querySelectorAll("a img"), (image) => image.cloneNode()));
      tip.append(thumbs);
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (event.clientY + 18 + box.height > innerHeight ? Math.max(4, event.clientY - box.height - 12) : event.clientY + 18) + "px";
  }
  function picturesOf(section, datum) {
    const winners = Array.from(section ? section.querySelectorAll("details.winner") : []);
    return winners.find(({ dataset }) => dataset.accelerator === datum.accelerator && dataset.params === datum.params);
  }
  function narrowLegends(spec, columns) {
    for (const value of Object.values(spec)) {
      if (value && typeof value === "object") {
        if (value.orient === "bottom" && value.columns) value.columns = columns;
        narrowLegends(value, columns);
      }
    }
  }
  // The rows of a cell with the scores that its chart is to show, but for LPIPS, which rows have.
  function scored(cell, name) {
    const scores = data.cells[cell].scores[name] || [];
    return rowsOf(cell).map((row, place) => {
      const [quality = null, quality_low = null, quality_high = null] = scores[place] || [];
      return { ...row, quality, quality_low, quality_high };
    });
  }
  const views = new WeakMap();
  async function draw(figure) {
    const axis = document.querySelector('.axis select[data-for="' + figure.id + '"]');
    const spec = JSON.parse(figure.querySelectorAll(".spec")[axis ? axis.selectedIndex : 0].textContent);
    const plot = figure.querySelector(".plot");
    const narrow = figure.clientWidth < 560;
    spec.config = config;
    if (spec.data && spec.data.name === "rows") spec.datasets = { ...spec.datasets, rows: scored(figure.closest("section").dataset.cell, axis && axis.value) };
    if (narrow) {
      narrowLegends(spec, 1);
      if (spec.facet) spec.columns = 1;
      spec.config = { ...config, legend: { ...config.legend, gradientLength: 120 } };
      // Long labels would leave no room for what they label.
      const bars = spec.encoding && spec.encoding.y && spec.encoding.y.axis;
      if (bars) Object.assign(bars, { labelLimit: 175, labelFontSize: 10 });
    }
    const live = element("div", undefined, "plot live");
    const before = figure.querySelector(".plot.live");
    if (before) {
      live.style.minHeight = before.offsetHeight + "px"; // what is below stays where it is
      if (views.has(before)) views.get(before).finalize();
      before.replaceWith(live);
    } else plot.after(live);
    try {
      const view = await vegaEmbed(live, spec, { mode: "vega-lite", renderer: "svg", actions: false, tooltip, ast: false });
      live.style.minHeight = "";
      if (live.isConnected) views.set(live, view);
      else view.finalize(); // another axis was chosen meanwhile
      plot.classList.add("drawn"); // for print
    } catch (error) {
      live.remove();
      console.error(error);
    }
  }
  const inSight = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting) {
          inSight.unobserve(target);
          draw(target);
        }
      }
    },
    { rootMargin: "300px" },
  );
  document.querySelectorAll(".chart").forEach((figure) => inSight.observe(figure));
  // What quality is told by is the reader's choice.
  for (const box of document.querySelectorAll(".axis")) {
    const select = box.querySelector("select");
    select.addEventListener("change", () => {
      const figure = document.getElementById(select.dataset.for);
      const { label, note } = select.selectedOptions[0].dataset;
      figure.setAttribute("aria-label", label);
      box.querySelector("output").textContent = note;
      tip.hidden = true;
      // Else it is drawn as chosen when it comes into sight.
      if (figure.querySelector(".plot.live")) draw(figure);
    });
  }
  addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));

  // Downloads.
  function save(name, type, text) {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const field = (value) => {
    let text = value === null ? "" : String(value);
    // A spreadsheet would take it for a formula.
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = "'" + text;
    return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  document.getElementById("csv").addEventListener("click", () => {
    const rows = (cell) => cell.rows.map((row) => [
      ...data.cell_columns.map((name) => cell[name]),
      ...data.columns.map((_, place) => row[place] ?? null),
    ]);
    const lines = [[...data.cell_columns, ...data.columns], ...data.cells.flatMap(rows)];
    save("diffaccel.csv", "text/csv", lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n");
  });
  document.getElementById("json").addEventListener("click", () => save("diffaccel.json", "application/json", JSON.stringify(data)));
})();
