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
  const count = place.tBodies[0].rows.length;

  const table = new DataTable(place, {
    autoWidth: false,
    paging: count > 100,
    pageLength: 100,
    lengthMenu: [25, 100, 500, -1],
    order: keys.includes(sorted) ? [[keys.indexOf(sorted), direction === "desc" ? "desc" : "asc"]] : [],
    columns: keys.map((key, at) => ({ visible: chosen ? chosen.has(key) : first[at], name: key })),
    search: { search: given.get("q") || "" },
    layout: { topStart: null, topEnd: "search", bottomStart: "info", bottomEnd: count > 100 ? ["pageLength", "paging"] : null },
    language: { search: "Search: ", info: "models: _TOTAL_", infoFiltered: "of _MAX_", infoEmpty: "no models" },
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
    const at = keys.indexOf(key);
    table.column(at).search(value ? (text) => text.trim() === value : "").draw();
    kept();
  }

  const boxes = keys.map((key, at) => {
    const box = rkhs.element("input", { type: "checkbox", onchange: () => { table.column(at).visible(box.checked); kept(); } });
    box.checked = table.column(at).visible();
    return box;
  });
  controls.append(rkhs.element("details", {}, rkhs.element("summary", {}, "Columns"),
    rkhs.element("div", { class: "choices" }, ...boxes.map((box, at) => rkhs.element("label", {}, box, ` ${heads[at].textContent.trim()}`)))));

  function kept() {
    const state = new URLSearchParams(), shown = keys.filter((_, at) => table.column(at).visible());
    const [one] = table.order();
    if (table.search()) { state.set("q", table.search()); }
    if (one && one[1]) { state.set("sort", `${keys[one[0]]}:${one[1]}`); }
    if (shown.join() !== keys.filter((_, at) => first[at]).join()) { state.set("cols", shown.join()); }
    for (const [key, select] of Object.entries(selects)) { if (select.value) { state.set(`f.${key}`, select.value); } }
    rkhs.keep(state);
  }
  table.on("order.dt search.dt", kept);
})();
