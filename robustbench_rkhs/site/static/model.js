"use strict";
// A model's page: its curve, and its images as a table that sorts by radius.
(function () {
  const words = { w: "wrong", b: "broken", c: "certified", s: "survived", u: "untested" };
  const text = DataTable.render.text(), given = rkhs.state();
  rkhs.follow();
  for (const section of document.querySelectorAll(".domain")) {
    const data = rkhs.data[section.dataset.stem], named = { model: data.model };
    rkhs.draw(section.querySelector(".chart"), JSON.parse(section.dataset.spec), {
      steps: data.steps.map(([eps, certified, broken]) => ({ eps, certified, broken, ...named })),
      points: data.points.map((point) => ({ ...point, ...named })),
    });
    const place = rkhs.element("table", {}, rkhs.element("caption", {}, "Images: largest proved radius and nearest adversarial example"));
    section.querySelector(".images").append(place);
    const rows = data.index.map((_, at) => at);
    const number = (values, none) => ({
      className: "number",
      render: (at, kind) => (values[at] === null ? (kind === "sort" || kind === "type" ? Infinity : none) : values[at]),
    });
    const said = (values) => ({ render: (at, kind) => text.display(values(at)) });
    const table = new DataTable(place, {
      data: rows.map((at) => [at]),
      autoWidth: false, deferRender: true, pageLength: 25, lengthMenu: [25, 100, 500],
      order: [[5, "asc"]],
      columns: [
        { title: "Image", ...number(data.index) },
        { title: "Class", ...number(data.label) },
        { title: "Predicted", ...number(data.predicted) },
        { title: "Certified radius", ...number(data.certified) },
        { title: "by", ...said((at) => data.certificates[data.proved_by[at]]) },
        { title: "Broken at", className: "number", render: broken },
        { title: "by", ...said((at) => data.attacks[data.broken_by[at]]) },
        ...data.eps.map(([eps, typed]) => ({ title: `at ${typed}`, ...said((at) => words[states(eps)[at]]) })),
      ].map((column) => ({ data: 0, ...column })),
      search: { search: given.get("q") || "" },
      layout: { topStart: null, topEnd: "search", bottomStart: "info", bottomEnd: ["pageLength", "paging"] },
      language: { search: "Search: ", info: "_START_ to _END_ of _TOTAL_ images", infoFiltered: "(of _MAX_)" },
    });
    table.on("search.dt", () => {
      const state = new URLSearchParams();
      if (table.search()) { state.set("q", table.search()); }
      rkhs.keep(state);
    });
    // images that are wrong as they are come last: they cannot fall
    function broken(at, kind) {
      const sorting = kind === "sort" || kind === "type";
      if (data.label[at] !== data.predicted[at]) { return sorting ? Infinity : 0; }
      return data.broken[at] === null ? (sorting ? 1e300 : "none known") : data.broken[at];
    }
    function states(eps) {
      return Object.entries(data.states).find(([key]) => Number(key) === eps)[1];
    }
  }
})();
