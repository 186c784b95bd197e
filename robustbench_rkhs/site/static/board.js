"use strict";
// The board's table: sorted, searched, filtered, with chosen columns; all of it kept in the page's address.
(function () {
  const place = document.getElementById("ranked");
  if (!place) { return; }
  const controls = document.getElementById("controls"), filters = JSON.parse(controls.dataset.filters);
  const heads = [...place.tHead.rows[0].cells], keys = heads.map((head) => head.dataset.key);
  const narrow = matchMedia("(max-width: 640px)").matches;
  const first = heads.map((head) => !head.classList.contains("extra") && (!narrow || head.classList.contains("major")));
  const given = rkhs.state(), chosen = given.has("cols") ? new Set(given.get("cols").split(",")) : null;
  const [sorted, direction] = (given.get("sort") || "").split(":");
  const rows = [...place.tBodies[0].rows].map((row) => [...row.cells]), count = rows.length;
  const said = (row, key) => rows[row][keys.indexOf(key)].textContent.trim();
  const searched = keys.filter((key, at) => heads[at].classList.contains("searched"));
  let looked = [];
  const words = rkhs.element("input", { type: "search", value: given.get("q") || "", oninput: () => table.draw() });

  const table = new DataTable(place, {
    autoWidth: false,
    paging: count > 100,
    pageLength: 100,
    lengthMenu: [25, 100, 500, -1],
    order: keys.includes(sorted) ? [[keys.indexOf(sorted), direction === "desc" ? "desc" : "asc"]] : [],
    columns: keys.map((key, at) => ({ visible: chosen ? chosen.has(key) : first[at], name: key })),
    layout: { topStart: null, topEnd: rkhs.element("div", { class: "dt-search" }, rkhs.element("label", {}, "Search: ", words)), bottomStart: "info", bottomEnd: count > 100 ? ["pageLength", "paging"] : null },
    language: { info: "models: _TOTAL_", infoFiltered: "of _MAX_", infoEmpty: "no models" },
  });

  const selects = {};
  for (const [key, values] of Object.entries(filters)) {
    const title = heads[keys.indexOf(key)].textContent.trim();
    const select = rkhs.element("select", { onchange: () => narrowed(key, select.value) }, rkhs.element("option", { value: "" }, "all"));
    values.forEach((value) => select.append(rkhs.element("option", { value }, value)));
    selects[key] = select;
    controls.append(rkhs.element("label", {}, `${title} `, select));
    if (values.includes(given.get(`f.${key}`))) {
      select.value = given.get(`f.${key}`);
      narrowed(key, select.value);
    }
  }
  function narrowed(key, value) {
    if (value) { table.search.fixed(key, (_, __, row) => said(row, key) === value); } else { table.search.fixed(key, null); }
    table.draw();
  }

  // what is not shown is not searched: a row that matches by a hidden cell would seem to match by nothing
  table.search.fixed("words", (_, __, row) => {
    if (!words.value) { return true; }
    const text = looked.map((key) => said(row, key)).join(" ").toLowerCase();
    return words.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  });

  const boxes = keys.map((key, at) => {
    const box = rkhs.element("input", { type: "checkbox", onchange: () => { table.column(at).visible(box.checked); shown(); table.draw(); } });
    box.checked = table.column(at).visible();
    return box;
  });
  controls.append(rkhs.element("details", {}, rkhs.element("summary", {}, "Columns"),
    rkhs.element("div", { class: "choices" }, ...boxes.map((box, at) => rkhs.element("label", {}, box, ` ${heads[at].textContent.trim()}`)))));

  // marks whose column is not shown are told in short under the names
  function shown() {
    looked = searched.filter((key) => table.column(`${key}:name`).visible());
    place.classList.toggle("unmarked", !looked.includes("marks"));
  }

  function kept() {
    const state = new URLSearchParams(), cols = keys.filter((_, at) => table.column(at).visible());
    const [one] = table.order();
    if (words.value) { state.set("q", words.value); }
    if (one && one[1]) { state.set("sort", `${keys[one[0]]}:${one[1]}`); }
    if (cols.join() !== keys.filter((_, at) => first[at]).join()) { state.set("cols", cols.join()); }
    for (const [key, select] of Object.entries(selects)) { if (select.value) { state.set(`f.${key}`, select.value); } }
    rkhs.keep(state);
  }
  rkhs.follow();
  shown();
  if (words.value) { table.draw(); }
  table.on("draw.dt", kept);
})();
